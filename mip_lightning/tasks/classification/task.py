"""Scale-space classification: one classifier for every factor of rescaling within it."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from mip_lightning.core.module import HyperLightningModule
from mip_lightning.core.outputs import StepOutput
from mip_lightning.errors import UsageError
from mip_lightning.hypernetworks.primary_at import PrimaryAtGamma
from mip_lightning.hypernetworks.theta import ThetaConfig
from mip_lightning.priors import Prior, Uniform
from mip_lightning.tasks._label_range import LabelRange
from mip_lightning.tasks.classification.ensemble import true_classes
from mip_lightning.utilities.precision import at_least_float32

ImagesAndLabels: TypeAlias = Sequence[Tensor]
"""Images ``(B, ...)`` and integer labels ``(B,)``, as PyTorch's loaders collate them."""


class Classification(HyperLightningModule):
    """Classification by cross-entropy; gamma is what the primary network makes of it.

    A primary whose ``forward`` has an argument ``gamma`` gets it, as ``ScaleSpaceResNet``, which
    rescales by it: 0.5 halves. Defaults follow the paper.

    Validation and test log the top-1 accuracy, averaged over the grid of gamma and at its best;
    ``val_accuracy`` chooses the checkpoint.

    Source: paper, Sections 5.1 and A.4.

    Args:
        primary: A classifier: ``(B, ...)``, and gamma if it asks for it, to logits ``(B, C)``.
        prior: p(gamma); by default uniform in [0, 0.5].
        theta: As in ``HyperLightningModule``; by default with the paper's weight decay.
        label_smoothing: Share of the target spread over all classes, in [0, 1), in the loss.
        ranks_share_gamma: Whether all ranks draw the same gamma, so that none waits for another
            that has larger images.
        options: Further arguments of ``HyperLightningModule``.

    Raises:
        UsageError: If ``label_smoothing`` is out of range, or as ``HyperLightningModule`` raises.
    """

    monitor: ClassVar[str] = "val_accuracy"
    mode: ClassVar[Literal["min", "max"]] = "max"

    def __init__(
        self,
        primary: nn.Module,
        prior: Prior | None = None,
        *,
        theta: ThetaConfig = ThetaConfig(weight_decay=1e-3),
        label_smoothing: float = 0.1,
        ranks_share_gamma: bool = True,
        **options: Any,
    ) -> None:
        prior = Uniform(0.0, 0.5) if prior is None else prior
        super().__init__(primary, prior, theta=theta, **options)
        if not 0.0 <= label_smoothing < 1.0:
            raise UsageError(f"label_smoothing={label_smoothing}: give a share in [0, 1)")
        self.label_smoothing = label_smoothing
        self.ranks_share_gamma = ranks_share_gamma
        self._label_range = LabelRange()

    @override
    def loss(self, batch: ImagesAndLabels, primary: PrimaryAtGamma) -> StepOutput:
        """Cross-entropy, in nats, with label smoothing.

        Raises:
            UsageError: If a label is not a class of the primary.
        """
        images, labels = batch
        logits = at_least_float32(primary(images))
        self._label_range.check(labels, logits.shape[1])
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return StepOutput(loss, logits.detach(), labels)

    @override
    def configure_metrics(self) -> dict[str, Metric]:
        return {"accuracy": MulticlassAccuracy(average="micro", validate_args=False)}

    @override
    def predict_step(
        self,
        batch: ImagesAndLabels | Float[Tensor, "B *shape"],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> dict[str, Tensor]:
        """Predict at the one gamma that was asked for.

        Args:
            batch: Images, alone or with labels.
            batch_idx: Index of the batch.
            dataloader_idx: Index of its data loader.

        Returns:
            ``label`` ``(B,)``, if the batch has labels, the ``predicted`` class ``(B,)`` and
            ``probabilities`` ``(B, C)``.

        Raises:
            UsageError: If none was asked for, or several.
        """
        images = batch if isinstance(batch, Tensor) else batch[0]
        (primary,) = self.predict_primaries(self.required_gamma.single)
        logits = at_least_float32(primary(images))
        return {
            **true_classes(batch),
            "predicted": logits.argmax(dim=-1),
            "probabilities": logits.softmax(dim=-1),
        }
