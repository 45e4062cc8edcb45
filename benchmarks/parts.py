"""The parts of a step that are the head's: its product, its gradient, its update."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.timing import Contestant, Row, device, race, report
from mip_lightning.functional.factored_gradient import FactoredGradient
from mip_lightning.functional.linear import factored_linear
from mip_lightning.optim._update import BLOCK_NUMBERS
from mip_lightning.optim.optimizers import FactoredAdam

SHAPE = (196_000, 128)
"""P and H of a head as the U-Net's."""

DRAWS = (1, 4, 8, 16)


def run(rounds: int = 15, small: bool = False, out: Path | None = None) -> None:
    """A head by itself, by torch's ordinary way and by this library's, and a copy of its weight.

    ``forward`` is the product with K hidden activations, ``backward`` also that with K gradients
    and the gradient of the weight, ``update`` a step of Adam; ``update, 2^n`` in blocks of 2^n
    numbers.

    Args:
        rounds: Number of rounds.
        small: A small head, to see whether it runs.
        out: A CSV file for the figures.
    """
    shape = (20_000, 128) if small else SHAPE
    rows: list[Row] = []
    for draws in DRAWS:
        rows += race(f"head, K = {draws}", draws, _contestants(shape, draws), rounds)
    report("The parts of a step over a head", rows, "copy", out)


def _contestants(shape: tuple[int, int], draws: int) -> dict[str, Contestant]:
    place = device()
    ordinary = nn.Parameter(torch.randn(shape, device=place))
    weight = nn.Parameter(ordinary.detach().clone())
    optimizers = [
        torch.optim.Adam([ordinary], lr=1e-6, fused=True),
        FactoredAdam([weight], lr=1e-6),  # from here on its gradient is kept in factors
    ]
    hidden = torch.randn(draws, shape[1], device=place, requires_grad=True)
    upstream = torch.randn(draws, shape[0], device=place)
    target = torch.empty_like(ordinary)

    def forward(product: Callable[..., torch.Tensor], of: nn.Parameter) -> Contestant:
        def run() -> None:
            with torch.no_grad():
                product(hidden, of)

        return run

    def backward(product: Callable[..., torch.Tensor], of: nn.Parameter) -> Contestant:
        def run() -> None:
            of.grad = hidden.grad = None
            product(hidden, of).backward(upstream)

        return run

    def update(of: nn.Parameter, which: int, block: int | None = None) -> Contestant:
        def run() -> None:
            usual = BLOCK_NUMBERS[place.type]
            BLOCK_NUMBERS[place.type] = usual if block is None else block
            factored = FactoredGradient(upstream, hidden.detach())
            of.grad = factored if which else factored.written_out()
            optimizers[which].step()
            BLOCK_NUMBERS[place.type] = usual

        return run

    blocks = {f"update, 2^{n}": update(weight, 1, 2**n) for n in (15, 17, 20, 22)}
    return {
        "copy": lambda: target.copy_(ordinary),
        "forward, torch": forward(F.linear, ordinary),
        "forward": forward(factored_linear, weight),
        "backward, torch": backward(F.linear, ordinary),
        "backward": backward(factored_linear, weight),
        "gradient and update, torch": update(ordinary, 0),
        "update": update(weight, 1),
        **(blocks if draws == 1 else {}),
    }
