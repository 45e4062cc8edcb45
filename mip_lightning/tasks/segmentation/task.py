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

from mip_lightning.core.module import HyperLightningModule
from mip_lightning.core.outputs import StepOutput, Volume
from mip_lightning.errors import UsageError
from mip_lightning.hypernetworks.primary_at import PrimaryAtGamma
from mip_lightning.priors import Prior, Uniform, format_gamma
from mip_lightning.tasks._dice import NUM_LABELS, LabelDice
from mip_lightning.tasks._label_range import LabelRange
from mip_lightning.tasks._volumes import clear_padding, own_boxes
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
        affine: From voxels to millimeters, shape ``(B, 4, 4)``, for files.
        size: Size of the image, in the middle of S, shape ``(B, D)``; by default S.
    """

    image: Tensor
    labels: Tensor
    name: NotRequired[list[str]]
    affine: NotRequired[Tensor | np.ndarray]
    size: NotRequired[Tensor | np.ndarray]


class Segmentation(HyperLightningModule):
    """Labels each voxel; gamma is what the primary network makes of it.

    A primary whose ``forward`` has an argument ``gamma`` gets it, as ``ScaleSpaceUNet``, which
    rescales by it: 0.5 halves. Defaults follow the paper.

    Validation and test log the mean Dice without the background, over each image's own voxels,
    averaged over the grid of gamma and at its best; ``val_dice`` chooses the checkpoint.
    In a result ``curves["dice"].by_label`` holds each label's.

    Source: paper, Sections 5.1 and A.4.

    Args:
        primary: Network: ``(B, C, *S)``, and gamma if it asks for it, to logits ``(B, L, *S)``.
        prior: p(gamma); by default uniform in [0, 0.5].
        objective: Module that maps (logits, labels) to a mean; by default
            ``CrossEntropyThenSoftDice()``, for a weighted sum ``monai.losses.DiceCELoss``.
        ranks_share_gamma: Whether all ranks draw the same gamma, so that none waits for another
            that has larger images.
        options: Further arguments of ``HyperLightningModule``.

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
        *,
        objective: nn.Module | None = None,
        ranks_share_gamma: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(primary, Uniform(0.0, 0.5) if prior is None else prior, **options)
        self.objective = CrossEntropyThenSoftDice() if objective is None else objective
        self.ranks_share_gamma = ranks_share_gamma
        self._label_range = LabelRange()

    @override
    def loss(self, batch: LabelledImages, primary: PrimaryAtGamma) -> StepOutput:
        """The objective, over each image's own voxels; where sizes differ, its mean over images.

        Raises:
            UsageError: If the primary's output has another size than the image or too few or many
                channels, a label is not a class of it, or ``size`` is not that of images in the
                middle.
        """
        labels = batch["labels"]
        logits = self._logits(batch, primary)
        self._label_range.check(labels, logits.shape[1])
        boxes = own_boxes(labels, batch)
        if boxes is None:
            loss = self.objective(logits, labels)
        else:
            loss = torch.stack(
                [
                    self.objective(logits[i : i + 1, :, *box], labels[i : i + 1, :, *box])
                    for i, box in enumerate(boxes)
                ]
            ).mean()
        return StepOutput(loss, _labels_of(logits, batch), clear_padding(labels, batch))

    @override
    def configure_metrics(self) -> dict[str, Metric]:
        return {"dice": LabelDice()}

    @override
    def start_training(self) -> None:
        super().start_training()
        objective = self.objective
        if isinstance(objective, CrossEntropyThenSoftDice) and 0 < objective.switch_at < 1:
            steps = self.trainer.estimated_stepping_batches
            if not math.isfinite(steps) or steps < 1:
                raise UsageError(
                    f"switch_at={objective.switch_at:g} is a share of training, and its end"
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

    @override
    def sample_names(self, batch: LabelledImages) -> Sequence[str]:
        return batch["name"] if "name" in batch else super().sample_names(batch)

    @override
    def predict_step(
        self, batch: LabelledImages, batch_idx: int, dataloader_idx: int = 0
    ) -> list[Volume]:
        """The predicted labels of each image at each requested gamma, in its own size.

        Raises:
            UsageError: If no gamma was requested, or the images have no names.
        """
        volumes = []
        for index, name in enumerate(self.sample_names(batch)):
            one = _one(batch, index)
            boxes = own_boxes(one["image"], one)
            affine = torch.as_tensor(one["affine"][0]).cpu() if "affine" in one else torch.eye(4)
            for primary in self.predict_primaries(self.required_gamma.of_sample(name)):
                found = self._labels_at(one, primary).cpu()
                found = found[boxes[0]] if boxes else found
                stem = f"{name}/gamma_{format_gamma(primary.gamma[0])}"
                volumes.append(Volume(f"{stem}_labels", found, affine))
        return volumes

    @override
    def plot_examples(
        self, batch: LabelledImages, gammas: Float[Tensor, "n D"]
    ) -> dict[str, Figure]:
        """The first image of a batch: its labels, and those predicted at each gamma."""
        one = _one(batch, 0)
        primaries = [self.model.at(gamma, check=False) for gamma in gammas.split(1)]
        found = torch.stack([self._labels_at(one, primary).cpu() for primary in primaries])
        figure = plot_segmentation(
            at_least_float32(one["image"][0, 0]).cpu(),
            one["labels"][0, 0].cpu(),
            found,
            [format_gamma(gamma, ", ") for gamma in gammas],
            self.label_names,
            torch.as_tensor(one["affine"][0]).cpu() if "affine" in one else None,
        )
        return {"segmentation": figure}

    def _labels_at(self, one: LabelledImages, primary: PrimaryAtGamma) -> Tensor:
        return _labels_of(self._logits(one, primary), one)[0, 0]

    def _logits(self, batch: LabelledImages, primary: PrimaryAtGamma) -> Tensor:
        image = batch["image"]
        logits: Tensor = primary(image)
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
