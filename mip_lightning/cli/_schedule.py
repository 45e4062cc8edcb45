"""The optimizer and the learning-rate schedule that the command line names."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch.cli import instantiate_class
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from mip_lightning.core.module import HyperLightningModule
from mip_lightning.errors import UsageError
from mip_lightning.optim.optimizers import FACTORED

BY_STEP = (OneCycleLR, CyclicLR)
"""Schedules that are defined by optimizer steps."""

LENGTHS = ("total_steps", "T_max", "total_iters")
"""Attributes by which schedules know their end."""


@dataclass(frozen=True)
class ScheduleConfig:
    """When the learning-rate schedule moves on.

    Args:
        interval: After each ``step`` of the optimizer or each ``epoch``; by default after each step
            for ``OneCycleLR`` and ``CyclicLR``, after each epoch for others.
        frequency: After so many of them.
        monitor: The logged value that ``ReduceLROnPlateau`` follows.

    Raises:
        UsageError: If ``frequency`` is below 1.
    """

    interval: Literal["step", "epoch"] | None = None
    frequency: int = 1
    monitor: str | None = None

    def __post_init__(self) -> None:
        if self.frequency < 1:
            raise UsageError(f"schedule.frequency={self.frequency}: give 1 or more")


def make_optimizer(
    model: HyperLightningModule,
    optimizer_init: dict[str, Any],
    scheduler_init: dict[str, Any] | None,
    schedule: ScheduleConfig,
) -> OptimizerLRScheduler:
    """The named optimizer of the model's parameter groups; factored if there is such a one.

    Args:
        model: The model.
        optimizer_init: Class and arguments of the optimizer.
        scheduler_init: Class and arguments of the schedule, if there is one.
        schedule: When it moves on.

    Raises:
        UsageError: If the schedule cannot be made, or ends before the run.
    """
    if model.learning_rate is not None:
        options = {**optimizer_init.get("init_args", {}), "lr": model.learning_rate}
        optimizer_init = {**optimizer_init, "init_args": options}
    optimizer: Optimizer = instantiate_class(model.parameter_groups(), optimizer_init)
    factored = FACTORED.get(type(optimizer))
    if factored is not None:
        optimizer = factored(model.parameter_groups(), **optimizer_init.get("init_args", {}))
    if scheduler_init is None:
        return optimizer
    name = str(scheduler_init["class_path"]).rpartition(".")[2]
    try:
        scheduler: LRScheduler = instantiate_class(optimizer, scheduler_init)
    except (TypeError, ValueError) as error:
        raise UsageError(f"lr_scheduler: {name} cannot be made ({error})") from error
    monitor = schedule.monitor or getattr(scheduler, "monitor", None)
    if isinstance(scheduler, ReduceLROnPlateau) and monitor is None:
        raise UsageError(f"lr_scheduler: {name} needs a metric: give --schedule.monitor val_loss")
    interval = schedule.interval or ("step" if isinstance(scheduler, BY_STEP) else "epoch")
    _check_length(name, scheduler, _number_of_moves(model, interval, schedule.frequency), interval)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {
            "scheduler": scheduler,
            "interval": interval,
            "frequency": schedule.frequency,
            "monitor": monitor,
        },
    }


def _number_of_moves(model: HyperLightningModule, interval: str, frequency: int) -> float:
    """How often the schedule moves on in the whole run; infinity where the end is not known."""
    trainer = model.trainer
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps):
        return math.inf
    in_epoch = max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))
    if interval == "epoch":
        return math.ceil(steps / in_epoch) // frequency
    epochs, rest = divmod(steps, in_epoch)  # Lightning counts from the start of each epoch
    return epochs * (in_epoch // frequency) + rest // frequency


def _check_length(name: str, scheduler: LRScheduler, moves: float, interval: str) -> None:
    found: Sequence[tuple[str, Any]] = [(key, getattr(scheduler, key, None)) for key in LENGTHS]
    lengths = [(key, length) for key, length in found if isinstance(length, int)]
    if not lengths or not math.isfinite(moves):
        return
    ((key, length), *_) = lengths
    told = f"lr_scheduler: {name} has {key}={length}, and this run moves it {moves:.0f} times"
    way_out = f"(each {interval}; --schedule.interval says when): give {key}={moves:.0f}"
    if isinstance(scheduler, OneCycleLR) and length < moves:
        raise UsageError(f"{told} {way_out}")  # torch would refuse the next one in mid-training
    if length > moves:
        rank_zero_warn(f"{told}, so that it does not finish {way_out}")
