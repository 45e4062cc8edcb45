"""One table from many test runs: replicas that differ only in their seed share a row."""

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from mip_lightning.errors import UsageError

TEST_CURVE = "test_gamma_curve.csv"


def summarize(test_folders: Iterable[Path], metric: str, by: Sequence[str]) -> str:
    """A Markdown table of a test metric averaged over gamma.

    Args:
        test_folders: Folders that ``mip-lightning test`` wrote.
        metric: A column of ``test_gamma_curve.csv``, such as ``accuracy``.
        by: Dotted keys of the runs' configuration that tell rows apart, such as
            ``model.init_args.formulation``.

    Returns:
        A row for each combination of values, in the order of first appearance: the values, the
        mean over replicas with its standard deviation, and each replica's figure.

    Raises:
        UsageError: If a folder holds no test, or a key or the metric is not there.
    """
    rows: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for folder in test_folders:
        config = _read_config(folder / "config.yaml")
        rows[tuple(str(_look_up(config, key, folder)) for key in by)].append(
            _mean_over_gamma(folder / TEST_CURVE, metric)
        )
    names = [key.rsplit(".", 1)[-1] for key in by]
    lines = [
        f"| {' | '.join(names)} | {metric}, mean (std) | replicas |",
        f"|{'---|' * (len(names) + 2)}",
    ]
    for values, figures in rows.items():
        spread = f" ({stdev(figures):.3f})" if len(figures) > 1 else ""
        replicas = ", ".join(f"{figure:.3f}" for figure in figures)
        lines.append(f"| {' | '.join(values)} | {mean(figures):.3f}{spread} | {replicas} |")
    return "\n".join(lines)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"{path.parent} holds no test: there is no {path.name}")
    with path.open() as file:
        config: dict[str, Any] = yaml.safe_load(file)
    return config


def _look_up(config: dict[str, Any], key: str, folder: Path) -> Any:
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise UsageError(f"by={key!r}: the configuration of {folder} has no {part!r}")
        value = value[part]
    return value


def _mean_over_gamma(path: Path, metric: str) -> float:
    if not path.is_file():
        raise UsageError(f"{path.parent} holds no finished test: there is no {path.name}")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if metric not in rows[0]:
        raise UsageError(f"metric={metric!r} is not in {path}: it has {', '.join(rows[0])}")
    return mean(float(row[metric]) for row in rows)
