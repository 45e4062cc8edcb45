"""PredictedWeightStats: the scale of the predicted weights against gamma (paper, Figure 1a)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mip_lightning.callbacks._files import StepTable, publish_figure, writes_files
from mip_lightning.callbacks.base import HyperCallback, hyper_module
from mip_lightning.diagnostics._style import symbol
from mip_lightning.diagnostics.weights import (
    ALL,
    WeightStatistics,
    along_axis,
    proportionality,
    weight_statistics,
)
from mip_lightning.errors import UsageError
from mip_lightning.utilities.files import Value

GRID = "grid"
"""The prior's grid, among the lines of gamma along which weights are recorded."""

MAX_LEGEND = 24
"""More lines than these have no legend."""

Stds: TypeAlias = dict[str, list[float]]
"""For each tensor, or each line of gamma, its std at each gamma."""


class PredictedWeightStats(HyperCallback):
    """Records std, mean and norm of theta against gamma, in all and for each predicted tensor.

    At the start, every N epochs or steps, and at the end of training; over the prior's grid, and
    where gamma has several dimensions at the start and the end along each dimension too, with the
    others at their medians. Writes ``predicted_weight_stats.csv`` (a row for each step, tensor and
    gamma) and the figure ``predicted_weight_stats.png`` to the run's folder, the figure also to
    TensorBoard, and logs ``proportionality/slope`` and ``proportionality/r2``.

    Args:
        every_n_epochs: Record at the end of each N-th epoch; 0 for none.
        grid_size: Number of gamma on the grid.
        every_n_steps: Record at each N-th optimizer step too; 0 for none.

    Raises:
        UsageError: If a value is out of range, or the module is no HyperLightningModule.

    Example::

        trainer:
          callbacks:
            - class_path: PredictedWeightStats
              init_args: {every_n_epochs: 5}
    """

    def __init__(
        self, every_n_epochs: int = 1, grid_size: int = 11, every_n_steps: int = 0
    ) -> None:
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if value < 0:
                raise UsageError(f"{name}={value}: give 1 or more, or 0 for none")
        if grid_size < 2:
            raise UsageError(f"grid_size={grid_size}: a line needs at least 2 values of gamma")
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.grid_size = grid_size
        super().__init__()
        self._lines: dict[str, Tensor] = {}
        self._table: StepTable | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record before training, or go on where a resumed run stopped."""
        if not writes_files(trainer):
            return
        prior = hyper_module(pl_module).model.prior
        self._lines = {GRID: prior.grid(self.grid_size)}
        if prior.dim > 1:
            for dimension, name in enumerate(prior.names):
                self._lines[name] = along_axis(prior, dimension, self.grid_size)
        self._table = StepTable(
            self.folder / "predicted_weight_stats.csv",
            ["step", "epoch", "line", "tensor", *prior.names, *WeightStatistics._fields],
            trainer.global_step if trainer.ckpt_path else None,
        )
        self._record(trainer, pl_module, trainer.current_epoch, list(self._lines))
        self._draw(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Record every N steps."""
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._record(trainer, pl_module, trainer.current_epoch, [GRID])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record every N epochs."""
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._record(trainer, pl_module, trainer.current_epoch + 1, [GRID])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the end, draw the figure and say where it is."""
        if not self._table:
            return
        self._record(trainer, pl_module, trainer.current_epoch, list(self._lines))
        self._draw(trainer, pl_module)
        rank_zero_info(f"Scale of the predicted weights: {self._table.path.with_suffix('.png')}")

    def _record(
        self, trainer: Trainer, pl_module: LightningModule, epoch: int, lines: Sequence[str]
    ) -> None:
        """Add what is not there yet of this step."""
        if self._table is None:
            return
        model, step = hyper_module(pl_module).model, trainer.global_step
        there = {row["line"] for row in self._table.rows if int(row["step"]) == step}
        for line in lines:
            if line in there:
                continue
            grid = self._lines[line]
            statistics = weight_statistics(model, grid)
            place: dict[str, Value] = {"step": step, "epoch": epoch, "line": line}
            self._table.append(
                {
                    **place,
                    "tensor": tensor,
                    **dict(zip(model.prior.names, gamma.tolist(), strict=True)),
                    **{name: float(values[k]) for name, values in of_tensor._asdict().items()},
                }
                for tensor, of_tensor in statistics.items()
                for k, gamma in enumerate(grid)
            )
            if line == GRID:
                fit = proportionality(grid.norm(dim=1), statistics[ALL].std)
                for logger in trainer.loggers:
                    logger.log_metrics(
                        {"proportionality/slope": fit.slope, "proportionality/r2": fit.r2}, step
                    )

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._table is not None
        model = hyper_module(pl_module).model
        figure = draw(self._table.rows, self._lines, model.prior.names)
        figure.suptitle(
            f"Scale of the predicted weights of {type(model.primary).__name__},"
            f" formulation: {model.formulation}"
        )
        publish_figure(trainer, figure, self._table.path.with_suffix(".png"))


def draw(
    rows: Sequence[Mapping[str, Any]],
    lines: Mapping[str, Float[Tensor, "n D"]],
    names: Sequence[str],
) -> Figure:
    """The std of theta against gamma, before training and now; of each tensor; along each axis.

    Args:
        rows: Rows of ``predicted_weight_stats.csv``.
        lines: The gammas of each line.
        names: Name of each dimension of gamma.
    """
    together: Stds = defaultdict(list)
    each: Stds = defaultdict(list)
    axes_of_gamma: Stds = defaultdict(list)
    last = int(rows[-1]["step"])
    epoch = rows[-1]["epoch"]
    for row in rows:
        step, line, tensor, std = int(row["step"]), row["line"], row["tensor"], float(row["std"])
        now = f"after epoch {epoch} (step {last})" if last else "before training"
        if line == GRID and tensor == ALL and step in (0, last):
            together["before training" if step == 0 else now].append(std)
        elif line == GRID and step == last:
            each[tensor].append(std)
        elif tensor == ALL and step == last:
            axes_of_gamma[line].append(std)
    figure = Figure(figsize=(13 + 5 * (len(lines) > 1), 4.8), layout="constrained")
    panels = figure.subplots(1, 2 + (len(lines) > 1))
    _draw_together(panels[0], names, lines[GRID], together)
    _draw_each(panels[1], names, lines[GRID], each, now)
    if axes_of_gamma:
        _draw_axes(panels[2], lines, axes_of_gamma, now)
    elif len(lines) > 1:
        panels[2].set_axis_off()
    return figure


def _draw_together(
    axes: Axes, names: Sequence[str], grid: Float[Tensor, "n D"], records: Stds
) -> None:
    """The std of all weights against gamma, with the line's slope and R^2 in the legend."""
    x, order = _prepare(axes, names, grid)
    for style, (when, stds) in zip(("o--", "s-"), records.items(), strict=False):
        std = torch.tensor(stds)
        fit = proportionality(grid.norm(dim=1), std)
        label = f"{when}: slope {fit.slope:+.2f}, $R^2$ {fit.r2:.2f}"
        axes.plot(x[order], std[order], style, label=label)
    axes.set_title("all predicted weights together")
    axes.set_ylim(0, 1.1 * max(max(stds) for stds in records.values()) or None)
    axes.legend(fontsize="small")


def _draw_each(
    axes: Axes, names: Sequence[str], grid: Float[Tensor, "n D"], stds: Stds, when: str
) -> None:
    """The std of each tensor against gamma, in the order of the network's tensors."""
    x, order = _prepare(axes, names, grid)
    colors = colormaps["viridis"](torch.linspace(0, 0.9, len(stds)).tolist())
    for color, (name, values) in zip(colors, stds.items(), strict=True):
        style = ".:" if name.endswith("bias") else ".-"
        axes.plot(x[order], torch.tensor(values)[order], style, color=color, label=name)
    axes.set_title(f"each of {len(stds)} tensors, {when}")
    axes.set_yscale("log" if any(max(values) > 0 for values in stds.values()) else "linear")
    if len(stds) <= MAX_LEGEND:
        axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_axes(axes: Axes, lines: Mapping[str, Tensor], stds: Stds, when: str) -> None:
    """The std of all weights along each dimension of gamma, from its lowest to highest value."""
    for dimension, (line, values) in enumerate(stds.items()):
        gamma = lines[line][:, dimension]
        unit = (gamma - gamma.min()) / (gamma.max() - gamma.min())
        axes.plot(unit, values, ".-", label=f"{line}: {gamma.min():.3g} to {gamma.max():.3g}")
    axes.set_title(f"along each dimension, {when}")
    axes.set_xlabel("one dimension, from low to high (others at their medians)")
    axes.set_ylabel(r"standard deviation of $\theta$")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if len(stds) <= MAX_LEGEND:
        axes.legend(fontsize="small")


def _prepare(axes: Axes, names: Sequence[str], grid: Float[Tensor, "n D"]) -> tuple[Tensor, Tensor]:
    """Label the axes; gamma itself is the horizontal one where D = 1, else its norm."""
    one = len(names) == 1
    label = f"hypernetwork input {symbol(names[0])}" if one else r"norm of the input $|\gamma|$"
    axes.set_xlabel(label)
    axes.set_ylabel(r"standard deviation of $\theta$")
    axes.grid(alpha=0.3)
    x = grid[:, 0] if one else grid.norm(dim=1)
    return x, x.argsort()
