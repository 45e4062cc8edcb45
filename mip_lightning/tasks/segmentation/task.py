"""Scale-space segmentation: one segmenter for every factor of rescaling within it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NotRequired, TypedDict

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import Metric
from typing_extensions import override

from mip_lightning.core._minibatch import DrawnGamma, StepOutput, Volume
from mip_lightning.core.module import DrawsPerBatch, HyperLightningModule
from mip_lightning.core.parameter_groups import GroupOptions
from mip_lightning.errors import UsageError
from mip_lightning.hypernetworks.hypermodel import Formulation
from mip_lightning.hypernetworks.hypernetwork import HypernetworkConfig
from mip_lightning.hypernetworks.theta import ThetaConfig
from mip_lightning.priors import Prior, Uniform, format_gamma
from mip_lightning.tasks._dice import NUM_LABELS, LabelDice
from mip_lightning.tasks._label_range import LabelRange
from mip_lightning.tasks._volumes import clear_padding, in_the_middle
from mip_lightning.tasks.segmentation.figure import plot_segmentation
from mip_lightning.tasks.segmentation.losses import CrossEntropyThenSoftDice
from mip_lightning.utilities.precision import at_least_float32

SWITCHED = "objective_switched"
"""Key of a checkpoint: whether training had come to soft Dice."""


class LabelledImages(TypedDict):
    """A batch of segmentation, as ``SegmentedImages`` gives it.

    Attributes:
        image: Shape ``(B, C, *S)``.
        labels: Integer labels, 0 the background, shape ``(B, 1, *S)``.
        name: Name of each image, for files.
        affine: From voxels to millimetres, shape ``(B, 4, 4)``, for files.
        size: Size of the image, in the middle of S, shape ``(B, D)``, for metrics and files; by
            default S.
    """

    image: Tensor
    labels: Tensor
    name: NotRequired[list[str]]
    affine: NotRequired[Tensor | np.ndarray]
    size: NotRequired[Tensor]


class Segmentation(HyperLightningModule):
    """Labels each voxel; gamma is what the primary network makes of it.

    A primary whose ``forward`` has an argument ``gamma`` gets it, as ``ScaleSpaceUNet``, which
    rescales by it: 0.5 halves. What is not said is the paper's for these.

    Validation and test log the mean Dice without the background, over each image's own voxels,
    averaged over the grid of gamma and at its best; ``val_dice`` chooses the checkpoint.
    ``curves["dice"].by_label`` holds each label's.

    Source: paper, Sections 5.1 and A.4.

    Args:
        primary: Network: ``(B, C, *S)``, and gamma if it asks for it, to logits ``(B, L, *S)``.
        prior: p(gamma); by default uniform in [0, 0.5].
        formulation: ``default``, ``input``, ``output`` or ``mip``.
        hypernetwork: Architecture of the hypernetwork.
        theta: Which parameters are predicted, and how theta0 starts and trains.
        group_options: Options of the optimizer that differ for a part of the model (``theta0``,
            ``ordinary``, ``trunk``, ``head``), such as ``{"theta0": {"lr": 1e-5}}``.
        draws_per_batch: K, the number of gamma drawn for a training batch, which must divide it;
            or ``one_per_sample``. Where sizes depend on gamma, draws are run in turn.
        validation_grid_size: Number of gamma over which validation sweeps.
        test_grid_size: Number of gamma over which test sweeps.
        objective: Module that maps (logits, labels) to a mean; by default
            ``CrossEntropyThenSoftDice()``, for a weighted sum ``monai.losses.DiceCELoss``.
        ranks_share_gamma: Whether all ranks draw the same gamma, so that none waits for another
            that has larger images.

    Raises:
        UsageError: As ``HyperLightningModule`` raises.
    """

    monitor: ClassVar[str] = "val_dice"
    mode: ClassVar[Literal["min", "max"]] = "max"
    predicts_volumes: ClassVar[bool] = True

    def __init__(
        self,
        primary: nn.Module,
        prior: Prior | None = None,
        formulation: Formulation = "mip",
        hypernetwork: HypernetworkConfig = HypernetworkConfig(),
        theta: ThetaConfig = ThetaConfig(),
        group_options: GroupOptions | None = None,
        draws_per_batch: DrawsPerBatch = 1,
        validation_grid_size: int = 5,
        test_grid_size: int = 11,
        objective: nn.Module | None = None,
        ranks_share_gamma: bool = True,
    ) -> None:
        super().__init__(
            primary,
            Uniform(0.0, 0.5) if prior is None else prior,
            formulation,
            hypernetwork,
            theta,
            group_options,
            draws_per_batch,
            validation_grid_size,
            test_grid_size,
        )
        self.objective = CrossEntropyThenSoftDice() if objective is None else objective
        self.ranks_share_gamma = ranks_share_gamma
        self._label_range = LabelRange()

    def loss(self, batch: LabelledImages, gamma: Float[Tensor, "K D"]) -> StepOutput:
        """The objective, over all voxels; labels for the metrics without the padding.

        Raises:
            UsageError: If the primary's output has another size than the image or too few or many
                channels, a label is no class of it, or ``size`` is not that of images in the
                middle.
        """
        labels = batch["labels"]
        logits = self._logits(batch, gamma)
        self._label_range.check(labels, logits.shape[1])
        loss = self.objective(logits, labels)
        return StepOutput(loss, _labels_of(logits, batch), clear_padding(labels, batch))

    def configure_metrics(self) -> dict[str, Metric]:
        """Mean Dice."""
        return {"dice": LabelDice()}

    @override
    def start_training(self) -> None:
        super().start_training()
        objective = self.objective
        if isinstance(objective, CrossEntropyThenSoftDice) and 0 < objective.switch_at < 1:
            steps = self.trainer.estimated_stepping_batches
            if not math.isfinite(steps) or steps < 1:
                raise UsageError(
                    f"switch_at={objective.switch_at:g} is a share of training, of which the end"
                    " is not known: give trainer.max_epochs or max_steps and data that knows its"
                    " length, or an epoch"
                )

    @override
    def start_batch(self) -> None:
        if isinstance(self.objective, CrossEntropyThenSoftDice):
            share = self.trainer.global_step / self.trainer.estimated_stepping_batches
            self.objective.progress(self.current_epoch, share)

    @override
    def keep_in_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().keep_in_checkpoint(checkpoint)
        if isinstance(self.objective, CrossEntropyThenSoftDice):
            checkpoint[SWITCHED] = self.objective.switched

    @override
    def take_from_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Validation and test measure the objective that the checkpoint's training had come to.
        super().take_from_checkpoint(checkpoint)
        if isinstance(self.objective, CrossEntropyThenSoftDice):
            self.objective.switched = checkpoint.get(SWITCHED, self.objective.switched)

    def sample_names(self, batch: LabelledImages) -> Sequence[str]:
        """The name of each image."""
        return batch["name"] if "name" in batch else super().sample_names(batch)

    def predict_step(self, batch: LabelledImages, batch_idx: int) -> list[Volume]:
        """The predicted labels of each image at each requested gamma, in its own size.

        Raises:
            UsageError: If no gamma was requested, or the images have no names.
        """
        volumes = []
        for index, name in enumerate(self.sample_names(batch)):
            one = _one(batch, index)
            image = one["image"]
            box = in_the_middle(image.shape[2:], one["size"][0] if "size" in one else None)
            affine = torch.as_tensor(one["affine"][0]).cpu() if "affine" in one else torch.eye(4)
            for drawn in self.evaluation_draws.of(self.model, self.requested_gamma(name)):
                found = self._labels_at(one, drawn)[box].cpu()
                stem = f"{name}/gamma_{format_gamma(drawn.gamma[0])}"
                volumes.append(Volume(f"{stem}_labels", found, affine))
        return volumes

    def plot_examples(
        self, batch: LabelledImages, gammas: Float[Tensor, "n D"]
    ) -> dict[str, Figure]:
        """The first image of a batch: its labels, and those predicted at each gamma."""
        one = _one(batch, 0)
        draws = map(DrawnGamma, gammas.split(1))
        found = torch.stack([self._labels_at(one, drawn).cpu() for drawn in draws])
        figure = plot_segmentation(
            at_least_float32(one["image"][0, 0]).cpu(),
            one["labels"][0, 0].cpu(),
            found,
            [format_gamma(gamma, ", ") for gamma in gammas],
            self.label_names,
            torch.as_tensor(one["affine"][0]).cpu() if "affine" in one else None,
        )
        return {"segmentation": figure}

    def _labels_at(self, one: LabelledImages, drawn: DrawnGamma) -> Tensor:
        with self._draws(drawn):
            labels: Tensor = _labels_of(self._logits(one, drawn.gamma), one)[0, 0]
        return labels

    def _logits(self, batch: LabelledImages, gamma: Float[Tensor, "K D"]) -> Tensor:
        image = batch["image"]
        logits: Tensor = self(image, gamma)
        if not 2 <= logits.shape[1] <= NUM_LABELS:
            raise UsageError(
                f"primary: {type(self.model.primary).__name__} gives {logits.shape[1]} channels:"
                f" give one for each label and one for the background, from 2 to {NUM_LABELS}"
            )
        if logits.shape[2:] != image.shape[2:]:
            raise UsageError(
                f"primary: {type(self.model.primary).__name__} gives {tuple(logits.shape)} for"
                f" images of {' x '.join(map(str, image.shape[2:]))}: logits have their size"
            )
        return logits


def _one(batch: LabelledImages, index: int) -> LabelledImages:
    """One sample, as a batch."""
    fields: Mapping[str, Any] = batch
    one: Any = {name: values[index : index + 1] for name, values in fields.items()}
    sample: LabelledImages = one
    return sample


def _labels_of(logits: Float[Tensor, "B L *S"], batch: LabelledImages) -> Tensor:
    """The most probable label of each own voxel of an image, as bytes, shape ``(B, 1, *S)``."""
    labels = logits.detach().argmax(dim=1, keepdim=True).to(torch.uint8)
    return clear_padding(labels, batch)
