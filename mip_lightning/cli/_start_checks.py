"""StartChecks: what a fit will not do, said before it trains."""

import difflib
import math
from collections.abc import Sequence

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from mip_lightning.errors import UsageError


class StartChecks(Callback):
    """Refuses monitors that validation does not log; says where no checkpoint will be written."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for limit in ("max_epochs", "max_steps"):
            if getattr(trainer, limit) == 0:
                rank_zero_warn(
                    f"trainer.{limit}=0: nothing is trained, and no checkpoint is written"
                )

    @override
    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with what validation has just logged.

        Raises:
            UsageError: If a metric of validation is monitored that is not there.
        """
        logged = sorted(trainer.callback_metrics)
        for owner, monitor in _monitors(trainer):
            if monitor.startswith("val") and monitor not in logged:
                near = difflib.get_close_matches(monitor, logged, n=3, cutoff=0.0)
                raise UsageError(
                    f"{owner} monitors {monitor!r}, which validation does not log: it logs"
                    f" {', '.join(near)}{', ...' if len(logged) > len(near) else ''}"
                )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reached, first = _num_batches(trainer), _first_validation(trainer)
        if 0 < reached < first and _has_best(trainer):
            when = "never" if math.isinf(first) else f"after {first:.0f} batches"
            rank_zero_warn(
                f"this run ends after {reached:.0f} batches and validates {when}: no best"
                " checkpoint is written (see trainer.check_val_every_n_epoch, val_check_interval)"
            )


def check_callbacks(callbacks: Sequence[Callback], module: LightningModule) -> None:
    """Refuse callbacks that cannot do their work.

    Args:
        callbacks: All callbacks of the run.
        module: The module.

    Raises:
        UsageError: If a checkpoint is chosen by a metric of other weights than it holds.
    """
    for callback in callbacks:
        if not isinstance(callback, ModelCheckpoint) or not callback.monitor:
            continue
        # Lightning keeps both as the user gave them, but under private names.
        state = vars(callback)
        for option in ("every_n_train_steps", "train_time_interval"):
            given = state.get(f"_{option}")
            if given and callback.monitor.startswith("val"):
                raise UsageError(
                    f"{type(callback).__name__}: {option}={given} saves between validations, and"
                    f" {callback.monitor!r} is of the weights of the last one: leave it out"
                    " (trainer.val_check_interval validates more often), or leave out monitor"
                )


def _monitors(trainer: Trainer) -> list[tuple[str, str]]:
    """What is monitored, by whom."""
    found = [
        (type(callback).__name__, callback.monitor)
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, (ModelCheckpoint, EarlyStopping)) and callback.monitor
    ]
    configs = trainer.lr_scheduler_configs
    schedules = [(type(c.scheduler).__name__, c.monitor) for c in configs if c.monitor]
    return [*found, *schedules]


def _has_best(trainer: Trainer) -> bool:
    callbacks = trainer.checkpoint_callbacks
    return any(isinstance(c, ModelCheckpoint) and c.monitor for c in callbacks)


def _num_batches(trainer: Trainer) -> float:
    """Number of training batches of the whole run."""
    in_epoch = float(trainer.num_training_batches)
    ends = []
    if trainer.max_epochs not in (None, -1):
        assert trainer.max_epochs is not None
        ends.append(trainer.max_epochs * in_epoch)
    if trainer.max_steps != -1:
        ends.append(float(trainer.max_steps * trainer.accumulate_grad_batches))
    return min(ends, default=math.inf)


def _first_validation(trainer: Trainer) -> float:
    """Number of training batches before the first validation."""
    if not trainer.enable_validation:
        return math.inf
    after = float(trainer.val_check_batch or 0)
    every = trainer.check_val_every_n_epoch
    return after if every is None else (every - 1) * float(trainer.num_training_batches) + after
