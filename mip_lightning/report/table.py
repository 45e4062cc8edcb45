"""One table from many test runs: replicas that differ only in their seed share a row."""

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mip_lightning.diagnostics.curves import IS_BEST
from mip_lightning.errors import UsageError
from mip_lightning.report._replicas import (
    CHECKPOINT,
    SEED,
    Run,
    differences,
    dotted,
    read_runs,
    text,
)

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
        UsageError: If a folder holds no test or is given twice, a key or the metric is not there,
            or the tests of a row are not replicas of each other.
    """
    rows: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for test in read_runs(test_folders, "test"):
        rows[tuple(str(_look_up(test.config, key, test.folder)) for key in by)].append(test)
    names = [key.rsplit(".", 1)[-1] for key in by]
    lines = [
        f"| {' | '.join(names)} | {metric}, mean (std) | replicas |",
        f"|{'---|' * (len(names) + 2)}",
    ]
    for values, tests in rows.items():
        _check_replicas(tests, by)
        figures = [_mean_over_gamma(test.folder / TEST_CURVE, metric) for test in tests]
        spread = f" ({stdev(figures):.3f})" if len(figures) > 1 else ""
        replicas = ", ".join(f"{figure:.3f}" for figure in figures)
        lines.append(f"| {' | '.join(values)} | {mean(figures):.3f}{spread} | {replicas} |")
    return "\n".join(lines)


def _check_replicas(tests: Sequence[Run], by: Sequence[str]) -> None:
    """Refuse tests of one row that differ in more than the seed, or are of one checkpoint."""
    first, *others = tests
    for test in others:
        found = differences([first.relevant, test.relevant])
        if found:
            keys = {dotted(path, values): values for path, values in found.items()}
            both = ", ".join(
                f"{key} ({' and '.join(map(text, values.values()))})"
                for key, values in keys.items()
            )
            way_out = next(
                (f"add --by {' '.join([*by, key])}, or " for key in keys if _tells(key, tests)), ""
            )
            raise UsageError(
                f"by={list(by)}: {first.folder} and {test.folder} are not replicas, for they differ"
                f" in {both}: {way_out}make a table of each"
            )
    of_checkpoint: dict[tuple[Any, Any], Path] = {}
    for test in tests:
        checkpoint, seed = test.config.get(CHECKPOINT), test.config.get(SEED)
        other = of_checkpoint.setdefault((checkpoint, seed), test.folder)
        if checkpoint is not None and other != test.folder:
            raise UsageError(
                f"{other} and {test.folder} are tests of one checkpoint, {checkpoint}: give one"
            )


def _tells(key: str, tests: Sequence[Run]) -> bool:
    """Whether ``--by`` can tell tests apart by this key, and leaves replicas together."""
    try:
        values = [_look_up(test.config, key, test.folder) for test in tests]
    except UsageError:
        return False
    return key != CHECKPOINT and any(value != values[0] for value in values)


def _look_up(config: dict[str, Any], key: str, folder: Path) -> Any:
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise UsageError(f"by={key!r}: the configuration of {folder} has no {part!r}")
        value = value[part]
    return value


def _mean_over_gamma(path: Path, metric: str) -> float:
    if not path.is_file():
        raise UsageError(
            f"{path.parent} is not the folder of a finished test: it lacks {path.name}"
        )
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise UsageError(f"{path} has no rows: the test was interrupted")
    if metric not in rows[0]:
        known = [name for name in rows[0] if not name.endswith(IS_BEST)]
        raise UsageError(f"metric={metric!r} is not in {path}: it has {', '.join(known)}")
    return mean(float(row[metric]) for row in rows)
