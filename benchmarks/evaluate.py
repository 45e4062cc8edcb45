"""What a sweep over gamma costs in evaluation, compared with that of an ordinary network."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.timing import Contestant, Row, device, race, report
from mip_lightning import HyperModel, Uniform
from mip_lightning.core._primary_cache import PrimaryCache
from mip_lightning.networks import ConstantWidthUNet, LeNet


@dataclass(frozen=True)
class Case:
    """A network and the batches over which it is evaluated."""

    name: str
    network: nn.Module
    shape: tuple[int, ...]
    batch: int
    num_batches: int


def run(rounds: int = 5, gammas: int = 100, small: bool = False, out: Path | None = None) -> None:
    """Evaluation at many gammas over a few batches: ordinary, materialized, hypernetwork.

    Args:
        rounds: Number of rounds.
        gammas: Number of gammas.
        small: Small images, to see whether it runs.
        out: A CSV file for the figures.
    """
    size = (32, 32) if small else (160, 192)
    cases = (
        Case("LeNet", LeNet(), (1, 28, 28), 64, 2 if small else 32),
        Case("U-Net", ConstantWidthUNet(), (2, *size), 1, 2 if small else 20),
    )
    rows: list[Row] = []
    for case in cases:
        rows += race(case.name, case.batch, _contestants(case, gammas), rounds, warmup=1)
    report(f"Evaluation at {gammas} gammas", rows, "plain", out)


def _contestants(case: Case, gammas: int) -> dict[str, Contestant]:
    model = HyperModel(case.network, Uniform()).to(device()).eval()
    plain = model.original_primary()
    batches = [
        torch.rand(case.batch, *case.shape, device=device()) for _ in range(case.num_batches)
    ]
    grid = model.prior.grid(gammas)

    @torch.no_grad()
    def evaluate(networks: Iterable[nn.Module]) -> None:
        for network in networks:
            for batch in batches:
                network(batch)

    @torch.no_grad()
    def hypernetwork() -> None:  # as a task's validation goes over batches and gammas
        primaries = PrimaryCache(model)
        primaries.start()
        for batch in batches:
            for primary in primaries(grid):
                primary(batch)

    @torch.no_grad()
    def hypernetwork_each_batch() -> None:
        for batch in batches:
            for gamma in grid.split(1):
                model.at(gamma, check=False)(batch)

    def materialized() -> Iterable[nn.Module]:
        return (model.materialize(gamma) for gamma in grid.split(1))

    return {
        "plain": lambda: evaluate(plain for _ in grid),
        "materialized": lambda: evaluate(materialized()),
        "hypernetwork": hypernetwork,
        "theta each batch": hypernetwork_each_batch,
    }
