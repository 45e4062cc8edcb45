"""The U-Net of HyperMorph's reference implementation, in MONAI's form."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

FLOW_STD = 1e-5


class HyperMorphUNet(nn.Module):
    """VoxelMorph's U-Net: 16-32-32-32 features down, 32-32-32-32-32-16-16 up, and the flow layer.

    It is MONAI's ``VoxelMorphUNet`` with the reference's features, but for the flow layer: that
    one starts from N(0, 1e-5) with biases at zero. The reference does not predict it, so that
    training starts near the identity; ``experiments/hypermorph_reference.yaml`` does as it does.
    Sizes of images are multiples of 16; ``Registration`` pads them.

    Source: Hoopes et al., "Learning the Effect of Registration Hyperparameters with HyperMorph",
    2022, Section 4.1, and its implementation in the package voxelmorph.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
    """

    def __init__(self, spatial_dims: Literal[2, 3] = 2) -> None:
        from monai.networks.nets import VoxelMorphUNet  # heavy: each command would wait for it

        super().__init__()
        self.net = VoxelMorphUNet(
            spatial_dims=spatial_dims,
            in_channels=2,
            unet_out_channels=32,
            channels=(16, 32, 32, 32, 32, 32, 32, 32),
            final_conv_channels=(16, 16),
        ).net
        *_, flow = (m for m in self.net.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)))
        nn.init.normal_(flow.weight, std=FLOW_STD)
        nn.init.zeros_(flow.get_parameter("bias"))

    def forward(self, images: Float[Tensor, "B 2 *S"]) -> Float[Tensor, "B axes *S"]:
        """The flow from two images."""
        flow: Tensor = self.net(images)
        return flow
