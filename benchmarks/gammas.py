"""What several gammas in a batch cost: together, and in a loop."""

from pathlib import Path

import torch

from benchmarks.timing import device, race, report
from mip_lightning import HyperModel, Uniform
from mip_lightning.networks import LeNet
from mip_lightning.optim.optimizers import FactoredAdam

BATCH = 64
DRAWS = (1, 8, BATCH)


def run(rounds: int = 30, size: int = 28, out: Path | None = None) -> None:
    """Forward and backward pass of the LeNet variant with K gammas in a batch of 64.

    The head's gradient stays in factors, as under the optimizer that a task has by default.

    Args:
        rounds: Number of rounds.
        size: Height and width of the images.
        out: A CSV file for the figures.
    """
    model = HyperModel(LeNet(), Uniform()).to(device())
    FactoredAdam(model.parameters())  # from here on
    images = torch.rand(BATCH, 1, size, size, device=device())

    def together(gamma: torch.Tensor) -> None:
        model.zero_grad(set_to_none=True)
        model.at(gamma, check=False)(images).square().mean().backward()

    def in_a_loop(gamma: torch.Tensor) -> None:
        model.zero_grad(set_to_none=True)
        outputs = [
            model.at(draw, check=False)(part)
            for draw, part in zip(gamma, images.chunk(len(gamma)), strict=True)
        ]
        torch.cat(outputs).square().mean().backward()

    draws = {num: torch.rand(num, 1, device=device()) for num in DRAWS}
    contestants = {}
    for num, gamma in draws.items():
        contestants[f"K = {num}"] = lambda gamma=gamma: together(gamma)
        if num > 1:
            contestants[f"K = {num}, loop"] = lambda gamma=gamma: in_a_loop(gamma)
    rows = race("LeNet", BATCH, contestants, rounds)
    report("Forward and backward pass with K gammas", rows, "K = 1", out)
