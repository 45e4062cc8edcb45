"""What it gains to keep the weights of convolutions with their channels last."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from benchmarks.step import CONTESTANTS, Case, cases
from benchmarks.timing import Row, race, report


def run(rounds: int = 20, small: bool = False, out: Path | None = None) -> None:
    """Training steps as ``step`` takes them, with the primary's channels first and last.

    Args:
        rounds: Number of rounds.
        small: Small images and batches, to see whether it runs.
        out: A CSV file for the figures.
    """
    rows: list[Row] = []
    for case in cases(small):
        last = replace(case, network=lambda case=case: _channels_last(case))
        contestants = {
            "plain": CONTESTANTS["plain"](case),
            "plain, channels last": CONTESTANTS["plain"](last),
            "mip": CONTESTANTS["mip"](case),
            "mip, channels last": CONTESTANTS["mip"](last),
        }
        rows += race(case.name, case.batch, contestants, rounds)
    report("A training step by memory format", rows, "plain", out)


def _channels_last(case: Case) -> nn.Module:
    return convert_conv2d_weight_memory_format(case.network(), torch.channels_last)
