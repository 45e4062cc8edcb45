"""From a network's flow to a displacement of voxels, and the derivatives of the displacement."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from mip_lightning.errors import UsageError
from mip_lightning.functional.spatial_transform import integrate


class Deformed(NamedTuple):
    """What a flow says.

    Attributes:
        displacement: The displacement, shape ``(B, D, *S)``, in voxels.
        regularized: The field that the regularization takes, shape ``(B, D, *R)``.
    """

    displacement: Float[Tensor, "B D *S"]
    regularized: Float[Tensor, "B D *R"]


class Deformation(nn.Module, ABC):
    """How the output of the primary network, the flow, is read.

    Args:
        half_resolution: Take the flow at half of its resolution, which is smoother and faster.
    """

    def __init__(self, half_resolution: bool = False) -> None:
        super().__init__()
        self.half_resolution = half_resolution

    @abstractmethod
    def integrate(self, field: Float[Tensor, "B D *R"]) -> Float[Tensor, "B D *R"]:
        """The displacement of a field, at the same resolution."""

    def forward(self, flow: Float[Tensor, "B D *S"]) -> Deformed:
        """Read a flow in voxels."""
        size = flow.shape[2:]
        field = flow
        if self.half_resolution:
            field = resized(flow, tuple(max(2, length // 2) for length in size))
        displacement = self.integrate(field)
        if self.half_resolution:
            displacement = resized(displacement, tuple(size))
        return Deformed(displacement, field)


class Displacement(Deformation):
    """The flow is the displacement itself (the paper's authors' earlier code).

    Args:
        half_resolution: Take the flow at half of its resolution, which is smoother and faster.
    """

    @override
    def integrate(self, field: Float[Tensor, "B D *R"]) -> Float[Tensor, "B D *R"]:
        return field


class StationaryVelocity(Deformation):
    """The flow is a stationary velocity, integrated by scaling and squaring: a diffeomorphism.

    Source: Dalca et al., "Unsupervised Learning for Fast Probabilistic Diffeomorphic Registration",
    2018, Section 2.1; HyperMorph takes seven steps at half resolution.

    Args:
        num_steps: Number of squarings; the velocity is divided by two to this power.
        half_resolution: Take the flow at half of its resolution, which is smoother and faster.

    Raises:
        UsageError: If ``num_steps`` is below 1.
    """

    def __init__(self, num_steps: int = 7, half_resolution: bool = False) -> None:
        super().__init__(half_resolution)
        if num_steps < 1:
            raise UsageError(f"num_steps={num_steps}: integrate by 1 or more")
        self.num_steps = num_steps

    @override
    def integrate(self, field: Float[Tensor, "B D *R"]) -> Float[Tensor, "B D *R"]:
        return integrate(field, self.num_steps)


def resized(field: Float[Tensor, "B D *S"], size: tuple[int, ...]) -> Float[Tensor, "B D *R"]:
    """A field of vectors in voxels, linearly at another resolution, in that one's voxels.

    Corners are aligned: a voxel counts ``(R - 1) / (S - 1)`` of those of the other resolution.
    """
    factors = [(new - 1) / max(old - 1, 1) for new, old in zip(size, field.shape[2:], strict=True)]
    mode = "bilinear" if len(size) == 2 else "trilinear"
    field = F.interpolate(field, size=size, mode=mode, align_corners=True)
    components = zip(field.unbind(dim=1), factors, strict=True)
    return torch.stack([component * factor for component, factor in components], dim=1)


def forward_differences(field: Float[Tensor, "B D *S"]) -> list[Float[Tensor, "B D *R"]]:
    """Differences of neighbors along each spatial axis, which is one shorter in each."""
    return [field.diff(dim=axis) for axis in range(2, field.ndim)]


def spatial_gradient(field: Float[Tensor, "B D *S"]) -> Float[Tensor, "B D D *S"]:
    """Derivatives along each axis (third dimension): central, one-sided at the border.

    Along an axis of one voxel all voxels are taken to be the same: 0.
    """
    derivatives = [
        torch.gradient(field, dim=axis)[0] if field.shape[axis] > 1 else torch.zeros_like(field)
        for axis in range(2, field.ndim)
    ]
    return torch.stack(derivatives, dim=2)


def physical_displacement(
    displacement: Float[Tensor, "D *S"],
    offset: Sequence[int],
    affine: Float[Tensor, "4 4"],
    moving_affine: Float[Tensor, "4 4"],
) -> Float[Tensor, "*S 3"]:
    """A displacement of voxels in millimeters, along left, posterior and superior.

    These are the directions of ITK's transforms; NIfTI's affines lead to right, anterior, superior.

    Args:
        displacement: The displacement of an image of 2 or 3 dimensions, in voxels.
        offset: Voxel x of the fixed image lies in the place of voxel ``x + offset`` of the moving
            one.
        affine: From the fixed image's voxels to millimeters.
        moving_affine: From the moving image's voxels to millimeters.
    """
    size = displacement.shape[1:]
    axes = [torch.arange(length, dtype=torch.float64) for length in size]
    voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    moved = voxels + displacement.double().movedim(0, -1) + torch.tensor(offset)
    points = [
        at @ to[:3, : len(size)].double().T + to[:3, 3].double()
        for at, to in ((voxels, affine), (moved, moving_affine))
    ]
    return ((points[1] - points[0]) * torch.tensor([-1.0, -1.0, 1.0])).float()


def jacobian_determinant(displacement: Float[Tensor, "B D *S"]) -> Float[Tensor, "B *S"]:
    """Determinant of the Jacobian of ``x + u(x)``: 0 or less where it folds.

    Source: VoxelMorph's ``jacobian_determinant``, with the same central differences.
    """
    gradient = spatial_gradient(displacement).flatten(3)
    identity = torch.eye(gradient.shape[1], device=gradient.device, dtype=gradient.dtype)
    jacobian = gradient.permute(0, 3, 1, 2) + identity
    determinant: Tensor = torch.linalg.det(jacobian)
    return determinant.view(len(displacement), *displacement.shape[2:])
