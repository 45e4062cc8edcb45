"""Losses of registration that MONAI has not, or has otherwise.

Any module that maps (warped, fixed) to a mean serves as similarity, any that maps a field to a mean
as regularization; MONAI's ``LocalNormalizedCrossCorrelationLoss``, ``GlobalMutualInformationLoss``
and ``BendingEnergyLoss`` by their class paths.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mip_lightning.errors import UsageError
from mip_lightning.tasks.registration.deformation import forward_differences


class SquaredError(nn.Module):
    """Mean squared error in units of the variance of the images' noise.

    Args:
        image_sigma: Standard deviation of the noise, above 0; 1 leaves the mean squared error as
            it is, HyperMorph takes 0.05.

    Raises:
        UsageError: If ``image_sigma`` is not above 0.
    """

    def __init__(self, image_sigma: float = 0.05) -> None:
        super().__init__()
        if not image_sigma > 0.0:
            raise UsageError(f"image_sigma={image_sigma}: give a standard deviation above 0")
        self.image_sigma = image_sigma

    def forward(
        self, warped: Float[Tensor, "B C *S"], fixed: Float[Tensor, "B C *S"]
    ) -> Float[Tensor, ""]:
        """The mean over voxels and samples."""
        return F.mse_loss(warped, fixed) / self.image_sigma**2


class TotalVariationPenalty(nn.Module):
    """Mean absolute difference of neighbors (anisotropic, L1), averaged over axes.

    Source: paper, Section A.3, which names the total variation of the flow; the form is that of
    its authors' earlier code.
    """

    def forward(self, field: Float[Tensor, "B D *S"]) -> Float[Tensor, ""]:
        """The mean over components, voxels and samples, in voxels."""
        return torch.stack([d.abs().mean() for d in forward_differences(field)]).mean()


class SquaredGradientPenalty(nn.Module):
    """Mean squared difference of neighbors, averaged over axes.

    Source: HyperMorph's ``Grad('l2')``, with its factor ``loss_mult``, 2 where the velocity is
    integrated at half resolution.

    Args:
        factor: Factor of the loss.
    """

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, field: Float[Tensor, "B D *S"]) -> Float[Tensor, ""]:
        """The mean over components, voxels and samples, in squared voxels."""
        means = [d.square().mean() for d in forward_differences(field)]
        return self.factor * torch.stack(means).mean()
