"""HyperTrainer: Lightning's Trainer with the commands that only hypernetworks have."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

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
from mip_lightning.module import HyperLightningModule

PARITY = 1e-6
"""Largest difference between hypermodel and materialized network, of the largest output."""


class HyperTrainer(Trainer):
    """Lightning's Trainer, and ``export``."""

    @torch.no_grad()
    def export(
        self,
        model: HyperLightningModule,
        datamodule: LightningDataModule,
        gamma: float | str | list[float] | dict[str, Any],
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
            gamma: The value; for several dimensions a list or, of a joint prior, a mapping.
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
        if ckpt_path is not None:
            checkpoint = torch.load(
                ckpt_path, map_location="cpu", weights_only=weights_only is not False
            )
            model.on_load_checkpoint(checkpoint)
            model.load_state_dict(checkpoint["state_dict"])
        model.eval()
        draws = model.model.prior.check(gamma)
        if len(draws) != 1:
            raise UsageError(f"gamma={gamma}: export takes one value")
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
        at = f"_gamma_{gamma}" if isinstance(gamma, (float, str)) else ""
        name = f"{type(network).__name__}{at}{SUFFIXES[format]}"
        file = Path(self.default_root_dir) / (path or name)
        export_network(network, inputs, file, format)
        rank_zero_info(f"The network at gamma = {gamma}: {file}")
        return file


@torch.no_grad()
def _inputs(
    model: HyperLightningModule, datamodule: LightningDataModule, gamma: torch.Tensor
) -> Iterator[Inputs]:
    """What the task gives the primary for each training batch."""
    for batch in datamodule.train_dataloader():
        yield from model.inputs_of(batch, gamma)
