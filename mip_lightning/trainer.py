"""HyperTrainer: Lightning's Trainer with the commands that only hypernetworks have."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console

from mip_lightning import recalibration
from mip_lightning.draws import Inputs, as_arguments, tensors_in
from mip_lightning.errors import UsageError
from mip_lightning.export import (
    SUFFIXES,
    Format,
    check_same_outputs,
    export_network,
    random_like,
)
from mip_lightning.gamma_search import By, FlopsBudget, GammaSearch, write_selected
from mip_lightning.module import HyperLightningModule
from mip_lightning.requested_gamma import GammaRequest, RequestedGamma

PARITY = 1e-6
"""Largest difference between hypermodel and materialized network, of the largest output."""


class HyperTrainer(Trainer):
    """Lightning's Trainer, ``export`` and ``select_gamma``, and ``predict`` at given gamma."""

    def predict(  # type: ignore[override]  # Lightning's, with gamma
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        gamma: GammaRequest | None = None,
    ) -> Any:
        """Run inference on your data.

        Args:
            model: The module.
            dataloaders: What to predict for, instead of a datamodule.
            datamodule: What to predict for.
            return_predictions: Whether to return the predictions; by default they are, unless they
                are volumes.
            ckpt_path: The checkpoint.
            weights_only: Whether the checkpoint may hold plain values only, as it does unless this
                is ``False``.
            gamma: Where to predict: a value, a list of values, or the YAML file that
                ``select-gamma`` wrote. ``BayesianClassification`` averages over them, and without
                any over draws.

        Returns:
            The predictions, as Lightning has them.
        """
        if isinstance(model, HyperLightningModule):
            model.requested = None if gamma is None else RequestedGamma(model.model.prior, gamma)
            if model.predicts_volumes and return_predictions is None:
                return_predictions = False
        return super().predict(
            model, dataloaders, datamodule, return_predictions, ckpt_path, weights_only
        )

    @torch.no_grad()
    def select_gamma(
        self,
        model: HyperLightningModule,
        datamodule: LightningDataModule,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        by: By = "all",
        metric: str | None = None,
        grid_size: int = 11,
        tolerance: float = 0.01,
        path: str = "selected_gamma.yaml",
        max_flops: float | None = None,
    ) -> Path:
        """Find the best gamma on the validation data, by a grid and a golden-section search.

        Args:
            model: The module.
            datamodule: Gives the validation data.
            ckpt_path: The checkpoint.
            weights_only: Whether the checkpoint may hold plain values only, as it does unless this
                is ``False``.
            by: One gamma for ``all``, one for each ``label``, or one for each ``subject``.
            metric: Name of the metric; by default the one that chooses checkpoints.
            grid_size: Number of values from which the search starts.
            tolerance: How close to come to the best gamma, as a share of the prior's range.
            path: The YAML file, relative to the run's folder unless absolute; ``predict`` and
                ``export`` take it as their gamma.
            max_flops: Choose among the gamma at which the primary takes at most so many FLOPs for a
                sample, as ``CostCurve`` counts them; by default any.

        Returns:
            The path of the file.

        Raises:
            UsageError: If a value is out of range, no gamma is as cheap as that, or as
                ``GammaSearch`` raises.
        """
        if grid_size < 2:
            raise UsageError(f"grid_size={grid_size}: start from 2 values or more")
        if not 0.0 < tolerance < 1.0:
            raise UsageError(f"tolerance={tolerance}: give a share of the range in (0, 1)")
        file = Path(self.default_root_dir) / path
        if file.exists():
            raise UsageError(f"path={str(file)!r} is there already: name another file")
        _load(model, ckpt_path, weights_only)
        device = self.strategy.root_device
        model.to(device).eval()
        datamodule.prepare_data()
        datamodule.setup("validate")
        model.label_names = getattr(datamodule, "label_names", {})
        batches = [
            model.transfer_batch_to_device(batch, device, 0)
            for batch in datamodule.val_dataloader()
        ]
        metric = metric or model.monitored_metric
        grid = model.model.prior.grid(grid_size)[:, 0].tolist()
        width = tolerance * (grid[-1] - grid[0])
        budget = None if max_flops is None else FlopsBudget(model, batches[0], max_flops, grid)
        with Console(stderr=True).status("selecting gamma") as status:
            search = GammaSearch(
                model, batches, metric, grid, width, status.update, budget or (lambda gamma: True)
            )
            selected = search.select(by)
        write_selected(file, selected, by, metric, ckpt_path, max_flops)
        for name, best in selected.items():
            cost = f", {budget.flops(best.gamma):.4g} FLOPs" if budget else ""
            rank_zero_info(f"{name}: {metric} {best.value:.4f} at gamma = {best.gamma:.4f}{cost}")
        rank_zero_info(f"The best gamma: {file}")
        return file

    @torch.no_grad()
    def export(
        self,
        model: HyperLightningModule,
        datamodule: LightningDataModule,
        gamma: GammaRequest,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        format: Format = "state_dict",
        path: str | None = None,
        recalibrate: bool = False,
    ) -> Path:
        """Write the ordinary network at one gamma, which needs this library no more.

        Args:
            model: The module.
            datamodule: Tells what the network takes, by one batch.
            gamma: The value; for several dimensions a list or, of a joint prior, a mapping; or the
                YAML file that ``select-gamma`` wrote for ``all``.
            ckpt_path: The checkpoint.
            weights_only: Whether the checkpoint may hold plain values only, as it does unless this
                is ``False``.
            format: ``state_dict``, ``torch_export`` or ``onnx``.
            path: The file, relative to the run's folder unless absolute; by default named after
                the primary and gamma.
            recalibrate: Measure the statistics of BatchNorm layers at this gamma, over
                the training batches.

        Returns:
            The path of the file.

        Raises:
            UsageError: If gamma is none of the prior's, or as ``export_network`` raises.
        """
        _load(model, ckpt_path, weights_only)
        model.eval()
        draws = RequestedGamma(model.model.prior, gamma).one
        datamodule.prepare_data()
        datamodule.setup("fit")
        network = model.model.materialize(draws).eval()
        inputs = next(_inputs(model, datamodule, draws))
        random = random_like(inputs)
        args, kwargs = as_arguments(random)
        outputs = (network(*args, **kwargs), model.model.run_at(draws, random))
        found, expected = (list(tensors_in([output])) for output in outputs)
        check_same_outputs(found, expected, PARITY, f"gamma={gamma}")
        if recalibrate:
            recalibration.recalibrate(network, _inputs(model, datamodule, draws))
        written = _in_words(gamma, draws)
        at = f"_gamma_{written}" if draws.shape[1] == 1 else ""
        name = f"{type(network).__name__}{at}{SUFFIXES[format]}"
        file = Path(self.default_root_dir) / (path or name)
        export_network(network, inputs, file, format)
        rank_zero_info(f"The network at gamma = {written}: {file}")
        if format == "state_dict" and model.model.asks_for_gamma:
            rank_zero_info(
                f"The file holds weights, not gamma: call {type(network).__name__} with"
                f" gamma={written}"
            )
        return file


def _load(model: HyperLightningModule, ckpt_path: str | None, weights_only: bool | None) -> None:
    """Take a checkpoint's weights, where one is named."""
    if ckpt_path is None:
        return
    checkpoint = torch.load(ckpt_path, map_location="cpu", weights_only=weights_only is not False)
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])


def _in_words(gamma: GammaRequest, draws: torch.Tensor) -> str:
    """How messages and names of files write a gamma: what came from a file, by its value."""
    is_file = isinstance(gamma, str) and Path(gamma).suffix in (".yaml", ".yml")
    return f"{draws.item():.4g}" if is_file else str(gamma)


@torch.no_grad()
def _inputs(
    model: HyperLightningModule, datamodule: LightningDataModule, gamma: torch.Tensor
) -> Iterator[Inputs]:
    """What the task gives the primary for each training batch."""
    for batch in datamodule.train_dataloader():
        yield from model.inputs_of(batch, gamma)


# The command is called as commands are; Lightning looks its method up by the command's name.
setattr(HyperTrainer, "select-gamma", HyperTrainer.select_gamma)
