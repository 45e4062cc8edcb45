"""HyperTrainer: Lightning's Trainer with the commands that only hypernetworks have."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from torch import Tensor, nn
from typing_extensions import override

from mip_lightning.core.module import HyperLightningModule
from mip_lightning.core.requested_gamma import GammaRequest, RequestedGamma
from mip_lightning.errors import UsageError
from mip_lightning.priors import format_gamma
from mip_lightning.trainer import _recalibration as recalibration
from mip_lightning.trainer._checkpoint_io import WholeCheckpoints
from mip_lightning.trainer.export import (
    SUFFIXES,
    Format,
    check_same_outputs,
    export_network,
    random_like,
)
from mip_lightning.trainer.gamma_search import FlopsBudget, GammaSearch, SelectBy, write_selected
from mip_lightning.utilities.files import check_unchanged
from mip_lightning.utilities.nested import Inputs, as_arguments, tensors_in

PARITY = 1e-6
"""Largest difference between hypermodel and materialized network, of the largest output."""


class HyperTrainer(Trainer):
    """Lightning's Trainer, ``export`` and ``select_gamma``, and ``predict`` at given gamma.

    Its checkpoints are whole at every moment, and are read only if no byte of them has changed.

    Args:
        args: As of Lightning's Trainer.
        kwargs: As of Lightning's Trainer.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.run_dir: Path | None = None
        super().__init__(*args, **kwargs)
        if type(self.strategy.checkpoint_io) is TorchCheckpointIO:  # the user has not chosen one
            self.strategy.checkpoint_io = WholeCheckpoints()

    @property
    @override
    def default_root_dir(self) -> str:
        return super().default_root_dir if self.run_dir is None else str(self.run_dir)

    @override
    def test(  # type: ignore[override]  # Lightning's, with gamma
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
        gamma: GammaRequest | None = None,
    ) -> list[Mapping[str, float]]:
        """Measure on the test data, over the prior's grid or at the gamma that was chosen.

        Args:
            model: The module.
            dataloaders: What to test on, instead of a datamodule.
            ckpt_path: The checkpoint.
            verbose: Whether to print the results.
            datamodule: What to test on.
            weights_only: Whether the checkpoint may hold plain values only, as it does unless this
                is ``False``.
            gamma: Where to measure: a value, a list of values, or the YAML file that
                ``select-gamma`` wrote; by default the prior's grid.

        Returns:
            The logged values, one mapping for each data loader.

        Raises:
            UsageError: If gamma is none of the prior's, or was chosen for each subject: those of
                the test data are others.
        """
        if isinstance(model, HyperLightningModule):
            requested = None if gamma is None else RequestedGamma(model.model.prior, gamma)
            model.evaluate_at("test", None if requested is None else requested.shared)
            if requested is not None:
                _say_names(requested)
        return super().test(model, dataloaders, ckpt_path, verbose, datamodule, weights_only)

    @override
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
            if model.requested is not None:
                _say_names(model.requested)
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
        by: SelectBy = "all",
        metric: str | None = None,
        grid_size: int = 11,
        tolerance: float = 0.01,
        path: str = "selected_gamma.yaml",
        max_flops: float | None = None,
    ) -> Path:
        """Find the best gamma on the validation data: by a grid and a search from its best value.

        The search is a golden section with parabolas, in several dimensions Powell's.

        Args:
            model: The module.
            datamodule: Gives the validation data.
            ckpt_path: The checkpoint.
            weights_only: Whether the checkpoint may hold plain values only, as it does unless this
                is ``False``.
            by: One gamma for ``all``, one for each ``label``, or one for each ``subject``.
            metric: Name of the metric; by default the one that chooses checkpoints.
            grid_size: Number of values from which the search starts.
            tolerance: How close to come to the best gamma, as a share of the prior's range (of its
                quantiles: of the logarithm's for ``LogUniform``).
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
        source = model.gamma_source
        if source is not None and not source.sweeps_grid:
            raise UsageError(
                f"gamma comes with each sample (gamma_source={type(source).__name__}): there is"
                " none to select, unless the source has sweeps_grid=True"
            )
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
        with Console(stderr=True).status("selecting gamma") as status:
            search = GammaSearch(model, batches, metric, grid_size, tolerance, status.update)
            budget = None
            if max_flops is not None:
                search.allowed = budget = FlopsBudget(model, batches[0], max_flops, search.grid)
            selected = search.select(by)
        write_selected(file, selected, by, metric, ckpt_path, max_flops)
        for name, best in selected.items():
            written = format_gamma(torch.tensor(best.gamma), ", ")
            cost = f", {budget.flops(best.gamma):.4g} FLOPs" if budget else ""
            rank_zero_info(f"{name}: {metric} {best.value:.4f} at gamma = {written}{cost}")
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
    ) -> list[Path]:
        """Write the ordinary network at each gamma, which needs this library no more.

        Args:
            model: The module.
            datamodule: Tells what the network takes, by one batch.
            gamma: A value, or a list of values; for several dimensions a list (of lists) or, of a
                joint prior, a mapping; or the YAML file that ``select-gamma`` wrote. Of several
                values each gives a network.
            ckpt_path: The checkpoint.
            weights_only: Whether the checkpoint may hold plain values only, as it does unless this
                is ``False``.
            format: ``state_dict``, ``torch_export`` or ``onnx``.
            path: The file of the one network, relative to the run's folder unless absolute; by
                default files are named after the primary and gamma.
            recalibrate: Measure the statistics of BatchNorm layers at this gamma, over
                the training batches.

        Returns:
            The paths of the files.

        Raises:
            UsageError: If gamma is none of the prior's, ``path`` is given for several, or as
                ``export_network`` raises.
        """
        _load(model, ckpt_path, weights_only)
        model.eval()
        requested = RequestedGamma(model.model.prior, gamma)
        if path is not None and len(requested.unique) > 1:
            raise UsageError(
                f"path={path!r} is one file, and gamma={gamma!r} holds"
                f" {len(requested.unique)} values: leave path out"
            )
        datamodule.prepare_data()
        datamodule.setup("fit")
        files = []
        for number, draw in enumerate(requested.unique):
            value = format_gamma(draw, ", ")
            network = self._network_at(model, datamodule, draw, recalibrate)
            at = f"_gamma_{value}" if len(draw) == 1 else f"_{number}" if number else ""
            name = f"{type(network).__name__}{at}{SUFFIXES[format]}"
            file = Path(self.default_root_dir) / (path or name)
            export_network(network, next(_inputs(model, datamodule, draw[None])), file, format)
            files.append(file)
            names = ", ".join(requested.names_at(draw))
            rank_zero_info(
                f"The network at gamma = {value}{f' ({names})' if names else ''}: {file}"
            )
            if format == "state_dict" and model.model.asks_for_gamma:
                rank_zero_info(
                    f"The file holds weights, not gamma: call {type(network).__name__} with"
                    f" gamma={value}"
                )
        return files

    def _network_at(
        self,
        model: HyperLightningModule,
        datamodule: LightningDataModule,
        draw: Float[Tensor, " D"],
        recalibrate: bool,
    ) -> nn.Module:
        """The materialized network, which computes what the hypermodel does.

        Args:
            model: The module.
            datamodule: Tells what the network takes.
            draw: Gamma.
            recalibrate: Measure the statistics of BatchNorm layers.
        """
        draws = draw[None]
        network = model.model.materialize(draws).eval()
        random = random_like(next(_inputs(model, datamodule, draws)))
        args, kwargs = as_arguments(random)
        at_gamma = model.model.at(draws, check=False)
        outputs = (network(*args, **kwargs), at_gamma(*args, **kwargs))
        found, expected = (list(tensors_in([output])) for output in outputs)
        check_same_outputs(found, expected, PARITY, f"gamma={draw.tolist()}")
        if recalibrate:
            recalibration.recalibrate(network, _inputs(model, datamodule, draws))
        return network


def _say_names(requested: RequestedGamma) -> None:
    """Say for which labels or subjects a value was selected, where it was for some."""
    for gamma in requested.unique:
        names = requested.names_at(gamma)
        if names:
            rank_zero_info(f"gamma = {format_gamma(gamma, ', ')}: {', '.join(names)}")


def _load(model: HyperLightningModule, ckpt_path: str | None, weights_only: bool | None) -> None:
    """Take a checkpoint's weights, where one is named; refuse weights that are not finite."""
    if ckpt_path is not None:
        check_unchanged(ckpt_path, "ckpt_path")
        checkpoint = torch.load(
            ckpt_path, map_location="cpu", weights_only=weights_only is not False
        )
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
    model.check_weights()


@torch.no_grad()
def _inputs(
    model: HyperLightningModule, datamodule: LightningDataModule, gamma: Tensor
) -> Iterator[Inputs]:
    """What the task gives the primary for each training batch."""
    for batch in datamodule.train_dataloader():
        yield from model.primary_calls(batch, gamma)


# The command is called as commands are; Lightning looks its method up by the command's name.
setattr(HyperTrainer, "select-gamma", HyperTrainer.select_gamma)
