"""What it gains to compile a network or a hypermodel."""

from functools import partial
from pathlib import Path

import torch

from benchmarks.step import cases, ours, plain
from benchmarks.timing import Row, race, report


def run(
    rounds: int = 15,
    backend: str = "inductor",
    mode: str | None = None,
    small: bool = False,
    out: Path | None = None,
) -> None:
    """Training steps as ``step`` takes them, as they are and by ``torch.compile``.

    Args:
        rounds: Number of rounds.
        backend: That of ``torch.compile``.
        mode: That of ``torch.compile``; ``reduce-overhead`` is by CUDA graphs on a GPU.
        small: Small images and batches, to see whether it runs.
        out: A CSV file for the figures.
    """
    rows: list[Row] = []
    change = partial(torch.compile, backend=backend, mode=mode)
    for case in cases(small):
        contestants = {
            "plain": plain(case),
            "plain, compiled": plain(case, change),
            "mip": ours(case),
            "mip, compiled": ours(case, change=change),
        }
        rows += race(case.name, case.batch, contestants, rounds)
    report("A training step, compiled or not", rows, "plain", out)
