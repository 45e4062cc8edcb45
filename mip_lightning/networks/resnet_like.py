"""The paper's ResNet-like classifiers: five stages of one residual block each, in 2D and 3D."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mip_lightning.errors import UsageError
from mip_lightning.networks._normalization import (
    Normalization,
    SpatialDims,
    normalization_layers,
)
from mip_lightning.networks.rescaling import Factor, as_factor, rescaled


class ResidualBlock(nn.Module):
    """Two convolutions, added to the input, by a 1 x 1 convolution where features change.

    Args:
        in_features: Number of features of the input.
        features: Number of features of the output.
        spatial_dims: 2 for images, 3 for volumes.
        normalization: After each convolution but that of the input.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        spatial_dims: SpatialDims,
        normalization: Normalization,
    ) -> None:
        super().__init__()
        convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.branch = nn.Sequential(
            convolution(in_features, features, kernel_size=3, padding=1),
            *normalization_layers(normalization, features, spatial_dims),
            nn.LeakyReLU(),
            convolution(features, features, kernel_size=3, padding=1),
            *normalization_layers(normalization, features, spatial_dims),
        )
        same = in_features == features
        self.shortcut = nn.Identity() if same else convolution(in_features, features, 1, bias=False)
        self.activation = nn.LeakyReLU()

    def forward(self, images: Float[Tensor, "B C *S"]) -> Float[Tensor, "B features *S"]:
        """Map images to an output of the same size."""
        output: Tensor = self.activation(self.shortcut(images) + self.branch(images))
        return output


class ResNetLike(nn.Module):
    """Residual blocks of 16, 32, 64, 128 and 128 features, each but the first after pooling.

    Then the mean over pixels and one linear layer. Max-pooling by 2.

    Source: paper, Sections A.2 and A.4, which name the features; the blocks are those of He et
    al., "Deep Residual Learning for Image Recognition", 2016, Figure 2. Without normalization
    the last convolution of each branch starts smaller by the root of the number of blocks, so
    that the variance of features does not grow with depth. Weights start by Kaiming normal for
    LeakyReLU, biases at zero.

    Args:
        num_classes: Number of classes C.
        in_channels: Number of image channels.
        spatial_dims: 2 for images, 3 for volumes.
        features: Number of features of each stage.
        normalization: In each block. Its affine parameters are not predicted by a hypernetwork.

    Raises:
        UsageError: If a value is out of range.
    """

    def __init__(
        self,
        num_classes: int = 102,
        in_channels: int = 3,
        spatial_dims: SpatialDims = 2,
        features: Sequence[int] = (16, 32, 64, 128, 128),
        normalization: Normalization = "none",
    ) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("in_channels", in_channels)):
            if value < 1:
                raise UsageError(f"{name}={value}: give 1 or more")
        if not features or min(features) < 1:
            raise UsageError(f"features={list(features)}: give 1 or more for each of the stages")
        self.spatial_dims = spatial_dims
        widths = [in_channels, *features]
        self.stages = nn.ModuleList(
            ResidualBlock(before, after, spatial_dims, normalization)
            for before, after in zip(widths, features, strict=False)
        )
        self.classifier = nn.Linear(features[-1], num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, a=0.01, nonlinearity="leaky_relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if normalization == "none":
            with torch.no_grad():
                for stage in self.stages:
                    assert isinstance(stage, ResidualBlock)
                    stage.branch.get_parameter("2.weight").div_(math.sqrt(len(features)))

    def forward(self, images: Float[Tensor, "B C *S"]) -> Float[Tensor, "B classes"]:
        """Classify images.

        Raises:
            UsageError: If an image has another number of dimensions, or is too small.
        """
        self._check(images, smallest=2 ** (len(self.stages) - 1))
        pool = F.max_pool2d if self.spatial_dims == 2 else F.max_pool3d
        return self._through(images, lambda below: pool(below, 2))

    def _check(self, images: Tensor, smallest: int) -> None:
        size = images.shape[2:]
        if len(size) != self.spatial_dims or min(size) < smallest:
            raise UsageError(
                f"images of {' x '.join(map(str, size))}: a {type(self).__name__} of"
                f" spatial_dims={self.spatial_dims} and {len(self.stages)} stages needs"
                f" {self.spatial_dims} dimensions of at least {smallest}"
            )

    def _through(self, images: Tensor, downsample: Callable[[Tensor], Tensor]) -> Tensor:
        for number, stage in enumerate(self.stages):
            images = stage(downsample(images) if number else images)
        logits: Tensor = self.classifier(images.flatten(2).mean(dim=2))
        return logits


class ScaleSpaceResNet(ResNetLike):
    """The ResNet-like classifier whose stages shrink images by gamma, in place of pooling.

    It has the weights of ``ResNetLike``. Images of any size fit, at any gamma: one pixel at least
    is left.

    Source: paper, Section A.4.
    """

    def forward(
        self, images: Float[Tensor, "B C *S"], gamma: Factor = 0.5
    ) -> Float[Tensor, "B classes"]:
        """Classify images.

        Args:
            images: The images.
            gamma: Factor by which they shrink before each stage but the first, in [0, 1].

        Raises:
            UsageError: If an image has another number of dimensions, or gamma is not a factor.
        """
        self._check(images, smallest=1)
        factor = as_factor(gamma)
        return self._through(images, lambda below: rescaled(below, factor))
