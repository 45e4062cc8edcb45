"""Numbers of single minibatches, kept on the device, and gathered from all ranks once an epoch."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from lightning.pytorch import Trainer
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors


class MinibatchRecords:
    """A row of numbers for each recorded minibatch.

    Ranks may have different numbers of rows, or none. Numbers are kept in float64, and all of them
    are gathered, so that every statistic over them is that of one process that sees all
    minibatches.

    Args:
        columns: Name of each number of a row.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self._rows: list[Tensor] = []

    def add(self, row: Sequence[Tensor | float]) -> None:
        """Keep a row, without waiting for the device."""
        tensors = [value for value in row if isinstance(value, Tensor)]
        device = tensors[0].device if tensors else None
        self._rows.append(
            torch.stack(
                [
                    value.detach().to(torch.float64).reshape(())
                    if isinstance(value, Tensor)
                    else torch.full((), float(value), dtype=torch.float64, device=device)
                    for value in row
                ]
            )
        )

    def gather(self, trainer: Trainer) -> Float[Tensor, "rows columns"]:
        """The rows of all ranks, in the order of their ranks, on the CPU; then start again.

        Every rank has to call it.
        """
        device = trainer.strategy.root_device
        rows = (
            torch.stack(self._rows).to(device)
            if self._rows
            else torch.empty(0, len(self.columns), dtype=torch.float64, device=device)
        )
        self._rows = []
        if trainer.world_size > 1:
            rows = torch.cat(gather_all_tensors(rows))
        return rows.cpu()
