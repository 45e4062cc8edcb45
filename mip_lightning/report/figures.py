"""``python -m mip_lightning.report.figures``: runs side by side, from what callbacks recorded.

They are the paper's Figures 1a (``scale``), 3a and 3b (``distributions``), 3c (``gradients``) and
4 (``convergence``).
"""

import argparse
import sys
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mip_lightning.diagnostics.distributions import (
    ORDINARY,
    ORDINARY_INDEX,
    Curves,
    plot_densities,
)
from mip_lightning.diagnostics.gradients import plot_norms
from mip_lightning.diagnostics.weights import ALL, GRID, WeightStatistics, plot_std
from mip_lightning.errors import UsageError
from mip_lightning.report._replicas import (
    names_of_groups,
    names_of_runs,
    read_runs,
    replicas,
)
from mip_lightning.report._validations import Row, read_rows, read_validations

OTHER_COLUMNS = {
    *("step", "epoch", "line", "tensor", *WeightStatistics._fields),  # of PredictedWeightStats
    *("of", "layer", "network", "value", "density"),  # of Distributions
}
"""The columns of both callbacks that are not a dimension of gamma."""

TITLE_WIDTH = 60
"""Characters in a line of a panel's title."""


def scale(runs: list[Path], out: Path) -> None:
    """Std of the predicted weights against gamma, before and after training, a panel for each run.

    Args:
        runs: Folders of runs with the callback PredictedWeightStats.
        out: The PNG file.
    """
    figure, panels = _panels(len(runs), "Scale of the predicted weights against gamma")
    tables = [read_rows(run / "predicted_weight_stats.csv", "PredictedWeightStats") for run in runs]
    for axes, table, name in zip(panels, tables, _names(runs), strict=True):
        rows = [row for row in table if row["tensor"] == ALL and row["line"] == GRID]
        last = max(int(row["step"]) for row in rows)
        records = {
            label: [float(row["std"]) for row in rows if int(row["step"]) == step]
            for label, step in (("initial", 0), (f"final (step {last})", last))
        }
        names, grid = _grid([row for row in rows if int(row["step"]) == last])
        plot_std(axes, names, grid, records)
        axes.set_title(textwrap.fill(name, TITLE_WIDTH))
    _save(figure, out)


def distributions(
    runs: list[Path],
    out: Path,
    of: Literal["weights", "activations"] = "weights",
    layer: str | None = None,
    step: int = 0,
) -> None:
    """Densities of weights or activations at several gammas, a panel for each run.

    Args:
        runs: Folders of runs with the callback Distributions.
        out: The PNG file.
        of: What the densities are of.
        layer: The layer; by default the one in the middle of the network.
        step: The optimizer step.
    """
    figure, panels = _panels(len(runs), "")
    tables = [read_rows(run / "distributions.csv", "Distributions") for run in runs]
    for axes, run, rows, name in zip(panels, runs, tables, _names(runs), strict=True):
        layers = list(dict.fromkeys(row["layer"] for row in rows))
        layer = layer or layers[len(layers) // 2]
        chosen = [
            row
            for row in rows
            if row["of"] == of and row["layer"] == layer and int(row["step"]) == step
        ]
        if not chosen:
            raise UsageError(
                f"layer={layer!r}, step={step}: {run} has the layers {', '.join(layers)} and the"
                f" steps {', '.join(dict.fromkeys(row['step'] for row in rows))}"
            )
        names, grid = _grid([row for row in chosen if row["network"] != ORDINARY])
        plot_densities(axes, _curves(chosen, names, grid), names, grid)
        axes.set_title(textwrap.fill(name, TITLE_WIDTH))
        axes.set_xlabel("weight" if of == "weights" else "activation")
        axes.legend(fontsize="small")
    panels[0].set_ylabel("density")
    figure.suptitle(f"Distribution of the {of} of {layer} at step {step}")
    _save(figure, out)


def gradients(runs: list[Path], out: Path) -> None:
    """Norm of the gradient with respect to the predicted weights, mean and std of each epoch.

    Args:
        runs: Folders of runs with the callback GradientStats.
        out: The PNG file.
    """
    figure, (axes,) = _panels(1, "Norm of the gradient with respect to the predicted weights")
    tables = [read_rows(run / "gradient_stats.csv", "GradientStats") for run in runs]
    curves = {
        name: [row for row in table if row["part"] == "theta"]
        for name, table in zip(_names(runs), tables, strict=True)
    }
    plot_norms(axes, curves)
    axes.set_ylabel("mean ± standard deviation over minibatches")
    axes.legend()
    _save(figure, out)


def convergence(runs: list[Path], out: Path, metric: str = "accuracy") -> None:
    """A validation metric against steps, mean and standard deviation over replicas; and a table.

    Runs whose configurations differ in nothing but the seed, and names, are replicas of each other.
    Others have curves of their own, called by their formulation and by what tells them apart. What
    is best is said by the column ``<metric>_is_best``; a metric without a better end has none.

    Args:
        runs: Folders of runs.
        out: The PNG file.
        metric: A column of ``val_gamma_curve.csv``.
    """
    groups = replicas(read_runs(runs, "run"))
    names = names_of_groups(groups)
    curves = [read_validations([run.folder for run in group], metric) for group in groups]
    titles = ["averaged over the grid of gamma"]
    if any(not isinstance(curve.at_best, str) for curve in curves):
        titles.append("at the best gamma")
    figure, panels = _panels(
        len(titles), f"Validation {metric.replace('_', ' ')} as training goes on"
    )
    lines = ["| formulation | replicas | over gamma | at the best gamma |", "|---|---|---|---|"]
    for color, (name, curve) in enumerate(zip(names, curves, strict=True)):
        cells = []
        for axes, values in zip(
            (panels[0], panels[-1]), (curve.over_gamma, curve.at_best), strict=True
        ):
            if isinstance(values, str):
                cells.append(values)
                continue
            mean, std = values.mean(axis=0), values.std(axis=0, ddof=1 if len(values) > 1 else 0)
            axes.plot(curve.steps, mean, "o-", ms=3, color=f"C{color}", label=name)
            axes.fill_between(curve.steps, mean - std, mean + std, color=f"C{color}", alpha=0.2)
            cells.append(f"{mean[-1]:.3f} ({std[-1]:.3f})")
        lines.append(f"| {name} | {len(curve.over_gamma)} | {' | '.join(cells)} |")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title)
        axes.set_xlabel("training steps")
        axes.set_ylabel(f"{metric.replace('_', ' ')}, mean ± standard deviation")
        axes.legend(fontsize="small")
    _save(figure, out)
    print("\n".join(lines))


def _curves(rows: Sequence[Row], names: Sequence[str], grid: Tensor) -> Curves:
    """The densities of one layer, by the index of gamma in the grid."""
    gammas = [tuple(gamma) for gamma in grid.tolist()]
    points: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        is_ordinary = row["network"] == ORDINARY
        index = ORDINARY_INDEX if is_ordinary else gammas.index(_gamma(row, names))
        points[index].append((float(row["value"]), float(row["density"])))
    return {index: tuple(np.array(of_index).T) for index, of_index in points.items()}


def _panels(number: int, title: str) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(5.5 * number + 1, 4.5), layout="constrained")
    figure.suptitle(title)
    panels = list(figure.subplots(1, number, squeeze=False)[0])
    for axes in panels:
        axes.grid(alpha=0.3)
    return figure, panels


def _grid(rows: Sequence[Row]) -> tuple[list[str], Float[Tensor, "n D"]]:
    """Names of gamma's dimensions and the different gammas, in the order of the rows."""
    names = [name for name in rows[0] if name not in OTHER_COLUMNS]
    gammas = dict.fromkeys(_gamma(row, names) for row in rows)
    return names, torch.tensor(list(gammas), dtype=torch.float64)


def _gamma(row: Row, names: Sequence[str]) -> tuple[float, ...]:
    return tuple(float(row[name]) for name in names)


def _names(runs: Sequence[Path]) -> list[str]:
    """What runs are called in a figure: their formulation, and what tells them apart."""
    return names_of_runs(read_runs(runs, "run"))


def _save(figure: Figure, out: Path) -> None:
    if out.exists():
        raise UsageError(f"out={str(out)!r} is there already: name another file")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    print(out)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mip_lightning.report.figures",
        description="Draw several runs side by side.",
    )
    commands = parser.add_subparsers(dest="figure", required=True)
    for function in (scale, distributions, gradients, convergence):
        help_line = (function.__doc__ or "").splitlines()[0]
        command = commands.add_parser(function.__name__, help=help_line, description=help_line)
        command.add_argument("runs", nargs="+", type=Path, help="folders that `fit` wrote")
        command.add_argument("--out", type=Path, required=True, help="the PNG file")
        command.set_defaults(function=function)
        if function is convergence:
            command.add_argument("--metric", default="accuracy", help="default: %(default)s")
        if function is distributions:
            command.add_argument("--of", choices=["weights", "activations"], default="weights")
            command.add_argument("--layer", help="default: the one in the middle of the network")
            command.add_argument("--step", type=int, default=0, help="default: %(default)s")
    options = vars(parser.parse_args())
    del options["figure"]
    function = options.pop("function")
    try:
        function(**options)
    except UsageError as error:
        sys.exit(f"mip_lightning.report.figures: error: {error}")


if __name__ == "__main__":
    main()
