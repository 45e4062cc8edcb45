"""TrainingStability: spikes of the loss, and what to do when it is not a number."""

import math
from collections import deque
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from mip_lightning.callbacks._files import StepTable, writes_files
from mip_lightning.callbacks._records import MinibatchRecords
from mip_lightning.callbacks.base import HyperCallback, hyper_module, latest_batch
from mip_lightning.core._checkpointing import way_out
from mip_lightning.errors import NonFiniteError, UsageError
from mip_lightning.utilities.norms import total_norm

OnNonFinite: TypeAlias = Literal["stop", "skip"]

MAD_TO_STD = 1.4826
"""Standard deviation of a Gaussian, in units of its median absolute deviation."""

MIN_HISTORY = 20
"""Losses before a spike can be told."""

PLACE = ("step", "epoch", "batch", "rank")
SPIKE = "spike"


class TrainingStability(HyperCallback):
    """Finds loss spikes, and stops at what is not finite, or skips such steps.

    A spike is a loss that lies more than ``threshold`` standard deviations above the running
    median, where the standard deviation is that of the running median absolute deviation. Spikes,
    and losses and gradients that are not finite, go to ``training_stability.csv``, each with its
    step, batch, rank and gamma; the number of spikes so far is logged as ``loss_spikes``.

    With ``on_non_finite: stop`` the values are looked at every ``every_n_steps`` and before each
    checkpoint, so that a training step waits for the device no more often; the error names the
    first bad step and the last good checkpoint, and no checkpoint is written after it. With
    ``skip`` the loss and gradient of every step are looked at, which waits for the device, and a
    bad step changes no weight, on any rank.

    The gradient is looked at without the head's, which has the same factors as theta0's; and not at
    all in 16-bit precision with a scaled loss, which skips such steps itself.

    Args:
        threshold: How far above the running median a spike is, in standard deviations.
        window: Number of losses that the running median is over.
        every_n_steps: Steps between two looks at the losses.
        on_non_finite: ``stop`` or ``skip``.

    Raises:
        UsageError: If a value is out of range, or the module is not a HyperLightningModule.
        NonFiniteError: At a loss that is not finite, with ``stop``.

    Example::

        trainer:
          callbacks:
            - class_path: TrainingStability
              init_args: {on_non_finite: skip}
    """

    def __init__(
        self,
        threshold: float = 6.0,
        window: int = 200,
        every_n_steps: int = 50,
        on_non_finite: OnNonFinite = "stop",
    ) -> None:
        if threshold <= 0:
            raise UsageError(f"threshold={threshold}: give a number above 0")
        if window < MIN_HISTORY:
            raise UsageError(f"window={window}: a running median needs at least {MIN_HISTORY}")
        if every_n_steps < 1:
            raise UsageError(f"every_n_steps={every_n_steps}: give 1 or more")
        if on_non_finite not in get_args(OnNonFinite):
            raise UsageError(f"on_non_finite={on_non_finite!r}: choose stop or skip")
        self.threshold = threshold
        self.every_n_steps = every_n_steps
        self.on_non_finite = on_non_finite
        super().__init__()
        self._history: deque[float] = deque(maxlen=window)
        self._records = MinibatchRecords(())
        self._since_flush = 0
        self._flush_after = every_n_steps
        self._gradient: Tensor | float = 0.0
        self._num_spikes = 0
        self._watched: list[nn.Parameter] = []
        self._table: StepTable | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._history.clear()
        self._since_flush = 0
        self._num_spikes = 0
        # Of weights alone Lightning writes checkpoints without asking callbacks.
        checkpoints = trainer.checkpoint_callbacks
        unasked = any(isinstance(c, ModelCheckpoint) and c.save_weights_only for c in checkpoints)
        self._flush_after = 1 if unasked else self.every_n_steps
        model = hyper_module(pl_module).model
        columns = [*PLACE, *model.prior.names, "loss", "gradient"]
        self._records = MinibatchRecords(columns)
        head = set(model.hypernetwork.head.parameters())
        trained = [p for p in pl_module.parameters() if p.requires_grad]
        beside = [p for p in trained if p not in head]
        has_theta0 = any(p.requires_grad for p in model.theta0.values())
        self._watched = beside if has_theta0 else trained
        if writes_files(trainer):
            self._table = self.table(
                trainer,
                "training_stability.csv",
                [*PLACE, *model.prior.names, "loss", "running_median", "event"],
            )
            self._num_spikes = sum(row["event"] == SPIKE for row in self._table.rows)
        self._num_spikes = trainer.strategy.broadcast(self._num_spikes)

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        plugin = trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is not None:
            return
        gradients = [p.grad for p in self._watched if p.grad is not None]
        self._gradient = total_norm(gradients) if gradients else 0.0
        if self.on_non_finite == "skip":
            loss = latest_batch(pl_module).output.loss
            finite = math.isfinite(self._gradient) and math.isfinite(loss)
            if not trainer.strategy.reduce_boolean_decision(finite, all=True):
                for parameter in pl_module.parameters():
                    parameter.grad = None  # an optimizer passes over these

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        place = [trainer.global_step, trainer.current_epoch, batch_idx, trainer.global_rank]
        gamma = latest_batch(pl_module).gamma.mean(dim=0).unbind()
        self._records.add([*place, *gamma, latest_batch(pl_module).output.loss, self._gradient])
        self._gradient = 0.0
        self._since_flush += 1
        if self._since_flush == self._flush_after:
            self._flush(trainer)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._flush(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._flush(trainer)
        # Every rank has counted the same; the reduction only tells Lightning so.
        pl_module.log("loss_spikes", float(self._num_spikes), batch_size=1, sync_dist=True)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.training or trainer.validating:
            self._flush(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._table is not None and self._table.rows:
            rank_zero_info(f"{len(self._table.rows)} unstable steps: {self._table.path}")

    def _flush(self, trainer: Trainer) -> None:
        """Look at the values kept since the last time, of all ranks; every rank has to call it."""
        self._since_flush = 0
        columns = self._records.columns
        rows = [
            dict(zip(columns, row, strict=True)) for row in self._records.gather(trainer).tolist()
        ]
        rows.sort(key=lambda row: (row["step"], row["batch"], row["rank"]))
        events = []
        for row in rows:
            gradient = row.pop("gradient")
            median, event = self._classify(row["loss"], gradient)
            if event is not None:
                whole = {name: int(row[name]) for name in PLACE}
                events.append({**row, **whole, "running_median": median, "event": event})
        self._num_spikes += sum(event["event"] == SPIKE for event in events)
        if self._table is not None:
            self._table.append(events)
        bad = [event for event in events if event["event"] != SPIKE]
        if bad and self.on_non_finite == "stop":
            raise NonFiniteError(_explain(trainer, bad[0], columns))

    def _classify(self, loss: float, gradient: float) -> tuple[float, str | None]:
        """The running median before a loss, and what the loss or its gradient is, if unusual."""
        history = np.array(self._history)
        median = float(np.median(history)) if len(history) else math.nan
        if not math.isfinite(loss):
            return median, "loss not finite"
        self._history.append(loss)
        if not math.isfinite(gradient):
            return median, "gradient not finite"
        if len(history) < MIN_HISTORY:
            return median, None
        deviation = MAD_TO_STD * float(np.median(np.abs(history - median)))
        spike = loss > median + self.threshold * deviation and loss > median * (1 + 1e-6)
        return median, SPIKE if spike else None


def _explain(trainer: Trainer, event: dict[str, Any], columns: tuple[str, ...]) -> str:
    gammas = [name for name in columns if name not in (*PLACE, "loss", "gradient")]
    gamma = ", ".join(f"{name} = {event[name]:g}" for name in gammas)
    return (
        f"{event['event']} at step {event['step']} (epoch {event['epoch']}, batch {event['batch']},"
        f" rank {event['rank']}, {gamma}): {way_out(trainer)} with a lower learning rate, or leave"
        " out such steps by on_non_finite='skip'"
    )
