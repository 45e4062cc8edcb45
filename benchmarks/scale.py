"""Time and memory of a training step against the number of predicted weights."""

from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from benchmarks.memory import available, with_peak
from benchmarks.timing import Row, device, median_and_spread, milliseconds, report
from mip_lightning import (
    ChunkedHead,
    DenseHead,
    HyperModel,
    HypernetworkConfig,
    LowRankHead,
    Uniform,
)
from mip_lightning.hypernetworks.heads import HeadType
from mip_lightning.optim.optimizers import FactoredAdam

BATCH = 4
WIDTHS = {10**4: 100, 10**5: 100, 10**6: 1000, 10**7: 1000, 10**8: 1000}
"""Width of the primary's square layers for each number of predicted weights."""

HEADS: dict[str, tuple[HeadType, Callable[..., torch.optim.Optimizer]]] = {
    "dense, written out": (DenseHead, torch.optim.Adam),
    "dense, factored": (DenseHead, FactoredAdam),
    "chunked": (ChunkedHead, FactoredAdam),
    "low-rank": (LowRankHead, FactoredAdam),
}

COPIES = {"dense, written out": 4, "dense, factored": 3, "chunked": 3, "low-rank": 3}
"""How many numbers are held for each of the head: weight, two moments, and a gradient."""

COPIES_OF_THETA = 12
"""As many are held of theta: theta0 with gradient and moments, delta, theta and their gradients."""


def run(largest: int = 10**8, steps: int = 5, small: bool = False, out: Path | None = None) -> None:
    """Steps of heads over a fully connected primary of 10^4 to 10^8 weights.

    Each head and size has a process of its own. What would not fit the free memory is left out.

    Args:
        largest: The largest number of predicted weights.
        steps: Number of steps that are timed, after two that are not.
        small: Two small sizes only, to see whether it runs.
        out: A CSV file for the figures.
    """
    rows: list[Row] = []
    for num_predicted in [10**4, 10**5] if small else [n for n in WIDTHS if n <= largest]:
        for name in HEADS:
            needed = _needed(name, num_predicted)
            if needed > available():
                Console().print(
                    f"{name}, P = {num_predicted:.0e}: left out, it takes some"
                    f" {needed / 1e9:.0f} GB, and {available() / 1e9:.0f} GB are free"
                )
                continue
            times, peak = with_peak(_times, name, num_predicted, steps)
            rows.append(
                Row(f"P = {num_predicted:.0e}", BATCH, name, *median_and_spread(times), peak)
            )
    report("A training step against P", rows, "dense, factored", out)


def _model(name: str, num_predicted: int) -> HyperModel:
    width = WIDTHS[num_predicted]
    layers: list[nn.Module] = []
    for _ in range(num_predicted // width**2):
        layers += [nn.Linear(width, width, bias=False), nn.ReLU()]
    config = HypernetworkConfig(head=HEADS[name][0])
    return HyperModel(nn.Sequential(*layers), Uniform(), hypernetwork=config)


def _needed(name: str, num_predicted: int) -> float:
    """Bytes that a step takes, by a count of the numbers."""
    with torch.device("meta"):
        head = _model(name, num_predicted).hypernetwork.head
    numbers = sum(p.numel() for p in head.parameters())
    return 4.0 * (COPIES[name] * numbers + COPIES_OF_THETA * num_predicted)


def _times(name: str, num_predicted: int, steps: int) -> list[float]:
    torch.manual_seed(0)
    with device():
        model = _model(name, num_predicted)
        batch = torch.rand(BATCH, WIDTHS[num_predicted])
        gamma = torch.rand(1, 1)
    optimizer = HEADS[name][1](model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        model.at(gamma, check=False)(batch).square().mean().backward()
        optimizer.step()

    return [milliseconds(step) for _ in range(2 + steps)][2:]
