"""The LeNet variant of the paper's MNIST task."""

from jaxtyping import Float
from torch import Tensor, nn

from mip_lightning.errors import UsageError
from mip_lightning.networks._normalization import Normalization, normalization_layers

MIN_SIZE = 8


class LeNet(nn.Module):
    """LeNet with ReLU, its first fully connected layer replaced by two convolutions.

    Convolutions of 6, 16, 32 and 64 features; max-pooling by 2 after the first two, and to
    2 x 2 after the last, so that any image from 8 x 8 pixels fits; fully connected layers of 84 and
    ``num_classes``.

    Source: paper, Section A.2, which names the 32 and 64 features; the rest is LeCun et al.,
    "Gradient-Based Learning Applied to Document Recognition", 1998, Section II.B. Weights start
    by Kaiming normal for ReLU, biases at zero.

    Args:
        num_classes: Number of classes C.
        in_channels: Number of image channels.
        normalization: After each convolution (the paper's BatchNorm-P and LayerNorm-P, baselines).
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 1, normalization: Normalization = "none"
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, kernel_size=5, padding=2),
            *normalization_layers(normalization, 6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, kernel_size=5, padding=2),
            *normalization_layers(normalization, 16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            *normalization_layers(normalization, 32),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=3, padding=1),
            *normalization_layers(normalization, 64),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(64 * 2 * 2, 84), nn.ReLU(), nn.Linear(84, num_classes)
        )
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.constant_(module.get_parameter("bias"), 0.0)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        """Classify images.

        Raises:
            UsageError: If an image is smaller than 8 x 8 pixels.
        """
        if min(images.shape[-2:]) < MIN_SIZE:
            raise UsageError(
                f"images of {images.shape[-2]} x {images.shape[-1]} pixels: LeNet needs at least"
                f" {MIN_SIZE} x {MIN_SIZE}"
            )
        logits: Tensor = self.classifier(self.features(images))
        return logits
