"""The paper's U-Nets: the same number of features at every level, in 2D and 3D.

Not called ``UNet``: MONAI has one, and of two classes neither goes by its short name.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mip_lightning.errors import UsageError
from mip_lightning.networks._normalization import SpatialDims
from mip_lightning.networks.rescaling import Factor, as_factor, rescaled, resized


class ConstantWidthUNet(nn.Module):
    """Encoder of five stages and decoder of four, two convolutions of 32 features in each.

    Max-pooling by 2 stands between the encoder's stages. Each stage of the decoder takes what is
    below it, brought linearly to the size of the encoder's output at its level, and that output. So
    images of any size fit that leave a pixel at the lowest level, odd ones too.

    Source: paper, Sections A.3 and A.4, which leave open the pooling, the activation and how
    weights start: here LeakyReLU, as in the paper's hypernetworks, and Kaiming normal for it,
    biases at zero.

    Args:
        in_channels: Number of channels of the input; for registration 2.
        out_channels: Number of channels of the output; for registration as many as dimensions.
        spatial_dims: 2 for images, 3 for volumes.
        features: Number of features of each convolution.
        levels: Number of stages of the encoder.
        output_std: Standard deviation with which the weights of the last layer start; by default
            that of Kaiming normal. By itself the network registers by next to nothing at the start
            with 1e-5, as VoxelMorph; in a hypermodel where this layer is not predicted.

    Raises:
        UsageError: If a value is out of range.
    """

    def __init__(
        self,
        in_channels: int = 2,
        out_channels: int = 2,
        spatial_dims: SpatialDims = 2,
        features: int = 32,
        levels: int = 5,
        output_std: float | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("features", features),
            ("levels", levels),
        ):
            if value < 1:
                raise UsageError(f"{name}={value}: give 1 or more")
        convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.spatial_dims = spatial_dims

        def stage(features_in: int) -> nn.Sequential:
            return nn.Sequential(
                convolution(features_in, features, kernel_size=3, padding=1),
                nn.LeakyReLU(),
                convolution(features, features, kernel_size=3, padding=1),
                nn.LeakyReLU(),
            )

        self.encoder = nn.ModuleList(
            stage(in_channels if level == 0 else features) for level in range(levels)
        )
        self.decoder = nn.ModuleList(stage(2 * features) for _ in range(levels - 1))
        self.output = convolution(features, out_channels, kernel_size=3, padding=1)
        for module in self.modules():
            if isinstance(module, convolution):
                nn.init.kaiming_normal_(module.weight, a=0.01, nonlinearity="leaky_relu")
                nn.init.zeros_(module.get_parameter("bias"))
        if output_std is not None:
            nn.init.normal_(self.output.weight, std=output_std)

    def forward(self, images: Float[Tensor, "B C *S"]) -> Float[Tensor, "B features *S"]:
        """Map images to an output of the same size.

        Raises:
            UsageError: If an image has another number of dimensions, or is too small.
        """
        smallest = 2 ** (len(self.encoder) - 1)
        self._check(images, smallest)
        pool = F.max_pool2d if self.spatial_dims == 2 else F.max_pool3d
        return self._through(images, lambda below: pool(below, 2))

    def _check(self, images: Tensor, smallest: int) -> None:
        size = images.shape[2:]
        if len(size) != self.spatial_dims or min(size) < smallest:
            raise UsageError(
                f"images of {' x '.join(map(str, size))}: a {type(self).__name__} of"
                f" spatial_dims={self.spatial_dims} and levels={len(self.encoder)} needs"
                f" {self.spatial_dims} dimensions of at least {smallest}"
            )

    def _through(self, images: Tensor, downsample: Callable[[Tensor], Tensor]) -> Tensor:
        skips: list[Tensor] = []
        for stage in self.encoder:
            images = stage(downsample(images) if skips else images)
            skips.append(images)
        images = skips.pop()
        for stage in self.decoder:
            skip = skips.pop()
            images = stage(torch.cat([skip, resized(images, skip.shape[2:])], dim=1))
        output: Tensor = self.output(images)
        return output


class ScaleSpaceUNet(ConstantWidthUNet):
    """The U-Net whose encoder shrinks images by gamma, a factor of any size, in place of pooling.

    The decoder enlarges them again to the sizes of the encoder. It has the weights of
    ``ConstantWidthUNet``. Images of any size fit, at any gamma: one pixel at least is left.

    Source: paper, Section A.4; Gonzalez Ortiz et al., "Amortized Learning of Dynamic Feature
    Scaling for Image Segmentation", 2023.
    """

    def forward(
        self, images: Float[Tensor, "B C *S"], gamma: Factor = 0.5
    ) -> Float[Tensor, "B features *S"]:
        """Map images to an output of the same size.

        Args:
            images: The images.
            gamma: Factor by which each stage of the encoder shrinks them, in [0, 1].

        Raises:
            UsageError: If an image has another number of dimensions, or gamma is not a factor.
        """
        self._check(images, smallest=1)
        factor = as_factor(gamma)
        return self._through(images, lambda below: rescaled(below, factor))
