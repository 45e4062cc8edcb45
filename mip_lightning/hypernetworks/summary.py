"""What a hypermodel predicts and what that takes, as a table."""

from dataclasses import dataclass
from io import StringIO
from typing import Literal

from rich.console import Console
from rich.table import Table
from torch import nn

from mip_lightning.hypernetworks._parameter_layout import ParameterLayout
from mip_lightning.hypernetworks.hypernetwork import Hypernetwork

MAX_ROWS = 24
"""More tensors than these are printed as the largest ones and the number of the rest."""


@dataclass(frozen=True)
class PrimaryTensor:
    """One parameter of the primary.

    Attributes:
        name: Its name.
        shape: Its shape.
        size: Its number of elements.
        role: Whether it is predicted, trains as usual, or does neither.
    """

    name: str
    shape: tuple[int, ...]
    size: int
    role: Literal["predicted", "ordinary", "frozen"]


@dataclass(frozen=True)
class Summary:
    """What a hypermodel predicts and what that takes; ``print`` it.

    Attributes:
        tensors: The primary's parameters.
        num_predicted: P, the number of predicted weights.
        num_ordinary: Number of the primary's weights that are not predicted.
        num_trunk: Number of hypernetwork weights before the head.
        num_head: Number of weights of the head.
        head: Name of the head's class.
        bytes_per_weight: Size of a hypernetwork weight.
    """

    tensors: tuple[PrimaryTensor, ...]
    num_predicted: int
    num_ordinary: int
    num_trunk: int
    num_head: int
    head: str
    bytes_per_weight: int

    def memory(self) -> dict[str, int]:
        """Bytes of the hypernetwork's weights, a gradient written out, and Adam's two moments."""
        weights = (self.num_trunk + self.num_head) * self.bytes_per_weight
        return {"weights": weights, "gradient": weights, "Adam's moments": 2 * weights}

    def __str__(self) -> str:
        console = Console(file=StringIO(), width=100)
        console.print(self._tensor_table())
        console.print(self._size_table())
        file = console.file
        assert isinstance(file, StringIO)
        return file.getvalue()

    def _tensor_table(self) -> Table:
        table = Table("tensor of the primary", "shape")
        table.add_column("weights", justify="right")
        table.add_column("")
        largest = sorted(self.tensors, key=lambda tensor: -tensor.size)[:MAX_ROWS]
        for tensor in self.tensors:
            if tensor in largest:
                shape = " x ".join(map(str, tensor.shape)) or "scalar"
                table.add_row(tensor.name, shape, f"{tensor.size:,}", tensor.role)
        if left := len(self.tensors) - len(largest):
            size = sum(tensor.size for tensor in self.tensors if tensor not in largest)
            table.add_row(f"{left} smaller ones", "", f"{size:,}", "")
        return table

    def _size_table(self) -> Table:
        table = Table("")
        table.add_column("numbers", justify="right")
        table.add_column("memory", justify="right")
        rows = [
            ("predicted weights P", self.num_predicted),
            ("ordinary weights", self.num_ordinary),
            ("hypernetwork: trunk", self.num_trunk),
            (f"hypernetwork: {self.head}", self.num_head),
        ]
        for name, number in rows:
            table.add_row(name, f"{number:,}", _size(number * self.bytes_per_weight))
        table.add_section()
        memory = self.memory()
        for name, word in (
            ("gradient", "gradient, if written out"),
            ("Adam's moments", "Adam's moments"),
        ):
            number = memory[name] // self.bytes_per_weight
            table.add_row(f"hypernetwork: {word}", f"{number:,}", _size(memory[name]))
        return table


def summarize(primary: nn.Module, layout: ParameterLayout, hypernetwork: Hypernetwork) -> Summary:
    """Count, by shapes alone.

    Args:
        primary: The primary network.
        layout: Its predicted tensors.
        hypernetwork: Predicts them.
    """
    tensors = tuple(
        PrimaryTensor(
            name, tuple(parameter.shape), parameter.numel(), _role(name, parameter, layout)
        )
        for name, parameter in primary.named_parameters()
    )
    num_head = sum(p.numel() for p in hypernetwork.head.parameters())
    return Summary(
        tensors,
        layout.num_predicted,
        sum(tensor.size for tensor in tensors) - layout.num_predicted,
        sum(p.numel() for p in hypernetwork.parameters()) - num_head,
        num_head,
        type(hypernetwork.head).__name__,
        next(hypernetwork.parameters()).element_size(),
    )


def _role(
    name: str, parameter: nn.Parameter, layout: ParameterLayout
) -> Literal["predicted", "ordinary", "frozen"]:
    if name in layout.shapes:
        return "predicted"
    return "ordinary" if parameter.requires_grad else "frozen"


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"
