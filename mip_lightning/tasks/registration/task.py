"""HyperMorph: deformable registration at every weight of its regularization at once."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from typing_extensions import override

from mip_lightning.core.evaluation import Stage
from mip_lightning.core.module import HyperLightningModule
from mip_lightning.core.outputs import StepOutput, Volume
from mip_lightning.errors import UsageError
from mip_lightning.functional.spatial_transform import warp
from mip_lightning.hypernetworks.primary_at import PrimaryAtGamma
from mip_lightning.priors import Prior, Uniform, format_gamma
from mip_lightning.tasks.registration.deformation import (
    Deformation,
    Deformed,
    Displacement,
    StationaryVelocity,
    physical_displacement,
)
from mip_lightning.tasks.registration.figure import plot_registration
from mip_lightning.tasks.registration.losses import SquaredError, TotalVariationPenalty
from mip_lightning.tasks.registration.metrics import (
    DiceBefore,
    FoldedShare,
    GradientMagnitude,
    MeanDice,
)
from mip_lightning.tasks.registration.pairs import OwnPairs, Pair, own_pairs
from mip_lightning.utilities.precision import at_least_float32


class Registration(HyperLightningModule):
    """Registers a moving image to a fixed one; gamma weighs the regularization of the flow.

    The primary maps both images, ``(B, 2, *S)``, to a flow ``(B, D, *S)``. The loss is
    ``(1 - gamma) similarity(warped, fixed) + gamma regularization(flow)``, gamma in [0, 1]: at 0
    the images alone count, at 1 nothing moves. Defaults follow the paper.

    Validation and test log, averaged over the grid and at the best gamma, the mean Dice of the
    warped labels (``val_dice_best`` chooses the checkpoint), the share of folded voxels and the
    mean gradient magnitude of the displacement, and ``val_dice_before``, the Dice before
    registration. In a result ``curves["dice"].by_label`` holds each label's.

    Source: paper, Sections 5.1 and A.3; Hoopes et al., "Learning the Effect of Registration
    Hyperparameters with HyperMorph", 2022, Equation 4.

    Args:
        primary: Network from 2 channels to as many as the images have dimensions.
        prior: p(gamma) in [0, 1]; by default uniform.
        similarity: Module that maps (warped, fixed) to a mean; by default ``SquaredError()``.
        regularization: Module that maps a field ``(B, D, *R)`` to a mean; by default
            ``TotalVariationPenalty()``.
        deformation: How the flow is read; by default ``Displacement()``.
        bidirectional: Average the similarity of the warped moving and the fixed image with that
            of the fixed image, warped by the inverse, and the moving one.
        divisible_by: Images are padded by zeros to multiples of this and the flow is cropped back;
            32 serves networks that halve an image up to five times.
        options: Further arguments of ``HyperLightningModule``.

    Raises:
        UsageError: If the prior has several dimensions or leaves [0, 1], ``divisible_by`` is below
            1, ``bidirectional`` lacks an inverse, or as ``HyperLightningModule`` raises.
    """

    monitor: ClassVar[str] = "val_dice_best"
    mode: ClassVar[Literal["min", "max"]] = "max"
    predicts_volumes: ClassVar[bool] = True
    references: ClassVar[Mapping[str, tuple[str, str]]] = {
        "dice": ("before registration", "dice_before")
    }

    def __init__(
        self,
        primary: nn.Module,
        prior: Prior | None = None,
        *,
        similarity: nn.Module | None = None,
        regularization: nn.Module | None = None,
        deformation: Deformation | None = None,
        bidirectional: bool = False,
        divisible_by: int = 32,
        **options: Any,
    ) -> None:
        super().__init__(primary, Uniform(0.0, 1.0) if prior is None else prior, **options)
        _check_prior(self.model.prior)
        if divisible_by < 1:
            raise UsageError(f"divisible_by={divisible_by}: give 1 or more")
        self.similarity = SquaredError() if similarity is None else similarity
        self.regularization = TotalVariationPenalty() if regularization is None else regularization
        self.deformation = Displacement() if deformation is None else deformation
        if bidirectional and not isinstance(self.deformation, StationaryVelocity):
            raise UsageError(
                f"bidirectional=True, and {type(self.deformation).__name__} has no inverse: use"
                " deformation StationaryVelocity"
            )
        self.bidirectional = bidirectional
        self.divisible_by = divisible_by

    def flow(self, batch: Pair, primary: PrimaryAtGamma) -> Float[Tensor, "B axes *S"]:
        """What the primary makes of the images, in voxels.

        Raises:
            UsageError: If it is not a flow of the images' size.
        """
        moving, fixed = batch["moving"], batch["fixed"]
        size = moving.shape[2:]
        margins = [-length % self.divisible_by for length in size]
        around = [m for margin in reversed(margins) for m in (margin // 2, margin - margin // 2)]
        images = torch.cat([moving, fixed], dim=1)
        flow: Tensor = primary(F.pad(images, around) if any(margins) else images)
        for axis, (length, margin) in enumerate(zip(size, margins, strict=True), start=2):
            flow = flow.narrow(axis, margin // 2, length) if margin else flow
        if flow.shape != (len(moving), len(size), *size):
            raise UsageError(
                f"primary: {type(self.model.primary).__name__} gives {tuple(flow.shape)} for images"
                f" of {' x '.join(map(str, size))}: a flow has {len(size)} channels"
            )
        # Positions of voxels are beyond half precision: bf16 knows 256 and 258, but not 257.
        return at_least_float32(flow)

    def deformed(self, batch: Pair, primary: PrimaryAtGamma) -> Deformed:
        """The displacement of a batch, and the field that is regularized."""
        deformed: Deformed = self.deformation(self.flow(batch, primary))
        return deformed

    @override
    def loss(self, batch: Pair, primary: PrimaryAtGamma) -> StepOutput:
        """``(1 - gamma) similarity + gamma regularization``, each draw's over its own pairs.

        Both are over the own voxels of each image. Where the images of a batch have several sizes,
        a draw's is the mean over its pairs.
        """
        flow, weight = self.flow(batch, primary), primary.gamma[:, 0]
        pairs = own_pairs(batch, flow)
        num_draws = len(weight) if len(pairs) == 1 else 1  # else no pairs of two draws are in one
        similarities, penalties, displacements = [], [], []
        with torch.autocast(flow.device.type, enabled=False):
            for pair in pairs:
                displacement, field = self.deformation(pair.flow)
                displacements.append(displacement.detach())
                similarities += self._similarities(pair, displacement, num_draws)
                penalties += [self.regularization(part) for part in field.chunk(num_draws)]
            similarity, penalty = (
                torch.stack(values).view(len(weight), -1).mean(dim=1)
                for values in (similarities, penalties)
            )
            loss = ((1.0 - weight) * similarity + weight * penalty).mean()
        return StepOutput(loss, displacements, pairs)

    def _similarities(
        self, pair: OwnPairs, displacement: Float[Tensor, "b axes *S"], num_draws: int
    ) -> list[Float[Tensor, ""]]:
        """The similarity of each draw's pairs."""
        warped = warp(pair.moving, displacement, offset=pair.offset)
        parts = self._compared(warped, pair.fixed, num_draws)
        if self.bidirectional:
            inverse = self.deformation(-pair.moving_flow).displacement
            warped = warp(pair.fixed, inverse, offset=[-start for start in pair.offset])
            backward = self._compared(warped, pair.moving, num_draws)
            parts = [(there + back) / 2 for there, back in zip(parts, backward, strict=True)]
        return parts

    def _compared(self, warped: Tensor, target: Tensor, num_draws: int) -> list[Tensor]:
        parts = zip(warped.chunk(num_draws), target.chunk(num_draws), strict=True)
        return [self.similarity(w, t) for w, t in parts]

    @override
    def configure_metrics(self) -> dict[str, Metric]:
        return {
            "dice": MeanDice(),
            "folded_share": FoldedShare(),
            "gradient_magnitude": GradientMagnitude(),
        }

    @override
    def sample_names(self, batch: Pair) -> Sequence[str]:
        """``MOVING_to_FIXED`` for each pair."""
        if "moving_name" not in batch or "fixed_name" not in batch:
            return super().sample_names(batch)
        names = zip(batch["moving_name"], batch["fixed_name"], strict=True)
        return [f"{moving}_to_{fixed}" for moving, fixed in names]

    @override
    def configure_extra_metrics(self, stage: Stage) -> dict[str, Metric]:
        return {"dice_before": DiceBefore()}

    @override
    def predict_step(self, batch: Pair, batch_idx: int, dataloader_idx: int = 0) -> list[Volume]:
        """Warped image, warped labels and displacement of each pair at each requested gamma.

        All are on the fixed image's grid. A displacement has three components in millimeters, the
        first towards the left, the second posterior, the third superior, in a last dimension: what
        is at point p of the fixed image was at ``p + u(p)`` in the moving one. ITK, ANTs and Slicer
        read it so.

        Raises:
            UsageError: If no gamma was requested, or the pairs have no names.
        """
        names = self.sample_names(batch)
        volumes = []
        for index, name in enumerate(names):
            pair: Any = {key: _one(values, index) for key, values in batch.items()}
            for primary in self.predict_primaries(self.required_gamma.of_sample(name)):
                stem = f"{name}/gamma_{format_gamma(primary.gamma[0])}"
                volumes += self._volumes(pair, primary, stem)
        return volumes

    def _volumes(self, batch: Pair, primary: PrimaryAtGamma, stem: str) -> list[Volume]:
        (pair,) = own_pairs(batch, self.flow(batch, primary))
        displacement = self.deformation(pair.flow).displacement
        images = {"image": warp(pair.moving, displacement, offset=pair.offset)[0, 0]}
        if pair.moving_labels is not None:
            labels = pair.moving_labels
            found = warp(labels.to(displacement.dtype), displacement, "nearest", pair.offset)
            images["labels"] = found[0, 0].to(labels.dtype)
        affine = _affine(batch, "affine")
        volumes = [Volume(f"{stem}_{kind}", v.cpu(), affine) for kind, v in images.items()]
        field = physical_displacement(
            displacement[0].cpu(), pair.offset, affine, _affine(batch, "moving_affine", affine)
        )
        return [*volumes, Volume(f"{stem}_displacement", field, affine, is_vector=True)]

    @override
    def plot_examples(self, batch: Pair, gammas: Float[Tensor, "n D"]) -> dict[str, Figure]:
        """The first pair of a batch, warped at each gamma: image, flow as a grid, difference.

        As it stands in the batch, with its padding.
        """
        pair: Any = {key: _one(values, 0) for key, values in batch.items()}
        primaries = [self.model.at(gamma, check=False) for gamma in gammas.split(1)]
        displacements = [self.deformed(pair, primary).displacement for primary in primaries]
        moving = pair["moving"].to(displacements[0].dtype)
        images = [warp(moving, displacement) for displacement in displacements]
        figure = plot_registration(
            moving[0, 0].cpu(),
            pair["fixed"][0, 0].to(moving).cpu(),
            torch.cat(images)[:, 0].cpu(),
            torch.cat(displacements).cpu(),
            gammas[:, 0].tolist(),
            _affine(pair, "affine") if "affine" in pair else None,
        )
        return {"registration": figure}


def _affine(batch: Pair, key: str, default: Tensor | None = None) -> Float[Tensor, "4 4"]:
    """That of the first image of a batch."""
    fields: Mapping[str, Any] = batch
    if key in fields:
        return torch.as_tensor(fields[key][0]).cpu()
    return torch.eye(4) if default is None else default


def _one(values: Any, index: int) -> Any:
    return values[index : index + 1]


def _check_prior(prior: Prior) -> None:
    ends = prior.quantile(torch.tensor([[0.0] * prior.dim, [1.0] * prior.dim]))
    if prior.dim != 1 or not bool(((ends >= 0.0) & (ends <= 1.0)).all()):
        raise UsageError(
            f"prior={prior}: gamma weighs similarity against regularization, so give a prior of"
            " one dimension in [0, 1], such as Uniform(0, 1)"
        )
