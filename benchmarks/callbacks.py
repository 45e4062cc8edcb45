"""What the callbacks add to a training step."""

import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.timing import Row, median_and_spread, report
from mip_lightning import Uniform
from mip_lightning.callbacks import (
    Distributions,
    GammaCurve,
    GradientStats,
    PredictedWeightStats,
    TrainingStability,
)
from mip_lightning.networks import LeNet
from mip_lightning.tasks import BayesianClassification

BATCH = 64


class StepTimes(Callback):
    """Time from the start of each training step to the start of the next, in milliseconds."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._last: float | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Read the clock, after the device has done its work."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._last is not None:
            self.times.append((now - self._last) * 1e3)
        self._last = now


def run(rounds: int = 6, steps: int = 100, size: int = 28, out: Path | None = None) -> None:
    """Training steps of the LeNet variant with every callback, at its default interval, and none.

    Args:
        rounds: Number of fits of each contestant, in turn.
        steps: Number of steps of a fit.
        size: Height and width of the images.
        out: A CSV file for the figures.
    """
    images, labels = torch.rand(BATCH * steps, 1, size, size), torch.arange(BATCH * steps) % 10
    loader = DataLoader(TensorDataset(images, labels), BATCH)
    times: dict[str, list[float]] = {"none": [], "all": []}
    with _quiet():
        for _ in range(rounds):
            for name, collected in times.items():
                collected += _fit(name == "all", loader)
    rows = [Row("LeNet", BATCH, name, *median_and_spread(times[name])) for name in times]
    report("A training step with callbacks", rows, "none", out)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Lightning's advice on loaders and devices out of the table."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _fit(with_callbacks: bool, loader: DataLoader[Any]) -> list[float]:
    timer = StepTimes()
    callbacks: list[Callback] = [timer]
    if with_callbacks:
        callbacks += [
            PredictedWeightStats(),
            Distributions(),
            GradientStats(),
            TrainingStability(),
            GammaCurve(),
        ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=1,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=callbacks,
        )
        trainer.fit(BayesianClassification(LeNet(), Uniform()), loader)
    return timer.times[5:]  # the first steps allocate
