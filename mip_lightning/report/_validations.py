"""What validations have recorded, in each of several replicas."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mip_lightning.diagnostics.curves import IS_BEST
from mip_lightning.errors import UsageError

Row = dict[str, str]

NO_BETTER_END = "no better end"
NOT_RECORDED = "not recorded"  # by runs of before the column that marks the best gamma


class Validations(NamedTuple):
    """A metric as training goes on, in each of several replicas.

    Attributes:
        steps: The optimizer step of each of n validations.
        over_gamma: Mean over the grid of gamma, shape ``(replicas, n)``.
        at_best: The value at the best gamma, NaN where every value is, same shape; or why it is
            not known.
    """

    steps: list[int]
    over_gamma: np.ndarray
    at_best: np.ndarray | str


def read_validations(runs: Sequence[Path], metric: str) -> Validations:
    """A metric at each validation of these replicas.

    Args:
        runs: Folders of runs.
        metric: A column of ``val_gamma_curve.csv``.

    Raises:
        UsageError: If a run lacks the file or the metric, or was validated at other steps.
    """
    steps: list[int] = []
    over_gamma: list[list[float]] = []
    at_best: list[list[float]] = []
    unknown = ""
    for run in runs:
        table = read_rows(run / "val_gamma_curve.csv", "GammaCurve")
        if metric not in table[0]:
            known = [name for name in table[0] if not name.endswith(IS_BEST)]
            raise UsageError(f"metric={metric!r} is not in {run}: it has {', '.join(known)}")
        if "step" not in table[0]:
            raise UsageError(f"{run} holds no training: give the folder that `fit` wrote")
        validations: dict[int, list[Row]] = defaultdict(list)
        for row in table:
            validations[int(row["step"])].append(row)
        if over_gamma and list(validations) != steps:
            raise UsageError(f"{run} was validated at other steps than {runs[0]}: draw them apart")
        steps = list(validations)
        over_gamma.append(
            [float(np.mean([float(row[metric]) for row in rows])) for rows in validations.values()]
        )
        at_best.append([_at_best(rows, metric) for rows in validations.values()])
        unknown = unknown or _why_unknown(table, metric)
    return Validations(steps, np.array(over_gamma), unknown or np.array(at_best))


def _at_best(rows: Sequence[Row], metric: str) -> float:
    """The value on the row that is marked best; NaN where none is."""
    marked = [row for row in rows if row.get(f"{metric}{IS_BEST}") == "1"]
    return float(marked[0][metric]) if marked else float("nan")


def _why_unknown(rows: Sequence[Row], metric: str) -> str:
    """Why the value at the best gamma is not known; empty where it is."""
    if f"{metric}{IS_BEST}" in rows[0]:
        # Rows of before the column, in a file that a resumed run has gone on with, have no mark.
        return "" if all(row[f"{metric}{IS_BEST}"] for row in rows) else NOT_RECORDED
    return NO_BETTER_END if any(name.endswith(IS_BEST) for name in rows[0]) else NOT_RECORDED


def read_rows(path: Path, callback: str) -> list[Row]:
    """The rows of a CSV file that a callback wrote, at least one.

    Args:
        path: The file.
        callback: Name of the callback.

    Raises:
        UsageError: If the file is not there, or has no rows.
    """
    if not path.is_file():
        raise UsageError(f"{path} is not there: run with the callback {callback}")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise UsageError(f"{path} has no rows yet")
    return rows
