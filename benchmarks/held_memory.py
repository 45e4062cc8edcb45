"""What it gains that memory which a step frees stays with the process."""

from pathlib import Path

import torch
from rich.progress import track

from benchmarks.memory import with_peak
from benchmarks.step import cases, ours, plain
from benchmarks.timing import Row, median_and_spread, milliseconds, report
from mip_lightning.callbacks.hold_memory import hold_memory

CONTESTANTS = {
    "plain": (plain, False),
    "plain, held": (plain, True),
    "mip": (ours, False),
    "mip, held": (ours, True),
}
"""What makes each contestant's step, and whether memory is held."""


def run(rounds: int = 3, steps: int = 10, small: bool = False, out: Path | None = None) -> None:
    """Training steps as ``step`` takes them, with the callback ``HoldMemory`` and without.

    It is set for a whole process, so that each contestant has one of its own in each round.

    Args:
        rounds: Number of processes of each contestant, in turn.
        steps: Number of steps that are timed in each, after two that are not.
        small: Small images and batches, to see whether it runs.
        out: A CSV file for the figures.
    """
    rows: list[Row] = []
    for index, case in enumerate(cases(small)):
        times: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
        peaks: dict[str, float | None] = {}
        for _ in track(range(rounds), description=f"{case.name}, batch {case.batch}"):
            for name, collected in times.items():
                found, peaks[name] = with_peak(_times, name, index, steps, small)
                collected += found
        rows += [
            Row(case.name, case.batch, name, *median_and_spread(times[name]), peaks[name])
            for name in times
        ]
    report("A training step, memory held or not", rows, "plain", out)


def _times(name: str, index: int, steps: int, small: bool) -> list[float]:
    make, holds = CONTESTANTS[name]
    if holds:
        hold_memory()
    torch.manual_seed(0)
    step = make(cases(small)[index])
    return [milliseconds(step) for _ in range(2 + steps)][2:]
