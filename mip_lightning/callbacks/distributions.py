"""Distributions: weights and activations at several gammas (paper, Figures 3a and 3b)."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from typing_extensions import override

from mip_lightning.callbacks._files import StepTable, writes_files
from mip_lightning.callbacks.base import HyperCallback, hyper_module
from mip_lightning.diagnostics.distributions import (
    ORDINARY,
    collect,
    estimate,
    plot_distributions,
)
from mip_lightning.errors import UsageError


class Distributions(HyperCallback):
    """Kernel densities of the predicted weights and of layer activations, for a few gammas.

    At the start and at the end of training, of each predicted tensor of two dimensions or more and
    of the output of the layer that holds it, next to an ordinary network: the primary as it was
    given, before any weight was predicted. Activations are those of the first training batch, in
    evaluation mode. Writes ``distributions.csv`` (a row for each step, layer,
    gamma and point) and the figures ``distributions_before.png`` and ``distributions_after.png``.

    Args:
        num_gammas: Number of gammas of the prior's grid.

    Raises:
        UsageError: If ``num_gammas`` is below 1, or the module is not a HyperLightningModule.

    Example::

        trainer:
          callbacks:
            - class_path: Distributions
              init_args: {num_gammas: 5}
    """

    def __init__(self, num_gammas: int = 5) -> None:
        if num_gammas < 1:
            raise UsageError(f"num_gammas={num_gammas}: give 1 or more")
        self.num_gammas = num_gammas
        super().__init__()
        self._batch: Any = None
        self._ordinary: nn.Module | None = None
        self._table: StepTable | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Learn the run's folder, and keep the ordinary network.

        Raises:
            UsageError: If the module is not a HyperLightningModule.
        """
        super().setup(trainer, pl_module, stage)
        # Before a checkpoint is loaded, and once: a second fit begins with trained weights.
        if stage == "fit" and self._ordinary is None and writes_files(trainer):
            self._ordinary = hyper_module(pl_module).model.original_primary()

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batch = None
        self._table = None

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._batch is not None or not writes_files(trainer):
            return
        self._batch = batch
        names = hyper_module(pl_module).model.prior.names
        self._table = self.table(
            trainer,
            "distributions.csv",
            ["step", "of", "layer", *names, "network", "value", "density"],
        )
        if trainer.global_step == 0:
            self._record(trainer, pl_module, "before")

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._table is None or self._table.last_step == trainer.global_step:
            return
        path = self._record(trainer, pl_module, "after")
        rank_zero_info(f"Distributions of weights and activations: {path}")

    def _record(self, trainer: Trainer, pl_module: LightningModule, when: str) -> Path:
        assert self._table is not None
        assert self._ordinary is not None
        module = hyper_module(pl_module)
        grid = module.model.prior.grid(self.num_gammas)
        samples = collect(module, self._ordinary, self._batch, grid)
        densities = {panel: estimate(of_panel) for panel, of_panel in samples.items()}
        names = module.model.prior.names
        self._table.append(
            {
                "step": trainer.global_step,
                "of": panel[0],
                "layer": panel[1],
                **dict.fromkeys(names, ""),
                **(dict(zip(names, grid[network].tolist(), strict=True)) if network >= 0 else {}),
                "network": ORDINARY if network < 0 else "hypernetwork",
                "value": value,
                "density": density,
            }
            for panel, curves in densities.items()
            for network, (values, density_there) in curves.items()
            for value, density in zip(values.tolist(), density_there.tolist(), strict=True)
        )
        figure = plot_distributions(densities, names, grid)
        figure.suptitle(
            f"{type(module.model.primary).__name__}, formulation: {module.model.formulation},"
            f" {when} training (step {trainer.global_step})"
        )
        stem = f"{self._table.path.stem}_{when}"
        path = self._table.path.with_name(f"{stem}.png")
        self.publish(trainer, figure, path)
        return path
