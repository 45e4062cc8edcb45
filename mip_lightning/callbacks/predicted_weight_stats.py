"""PredictedWeightStats: the scale of the predicted weights against gamma (paper, Figure 1a)."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mip_lightning.callbacks.files import (
    StepTable,
    publish_figure,
    run_folder,
    symbol,
    writes_files,
)
from mip_lightning.errors import UsageError
from mip_lightning.hypermodel import HyperModel
from mip_lightning.module import HyperLightningModule

ALL = "all"
"""Name of the row that covers all predicted tensors together."""

MAX_LEGEND = 24
"""More tensors than these have no legend."""

WeightStds: TypeAlias = dict[str, list[float]]
"""For ``all`` and for each predicted tensor, its std at each gamma of the grid."""


class Proportionality(NamedTuple):
    """Least-squares line of std(theta) against ``|gamma|``.

    Attributes:
        slope: In units of the mean std, so that it is comparable between networks: 2 for a line
            through zero over an evenly spaced grid from 0, about 0 where the scale does not
            depend on gamma.
        r2: Share of the variance of std that the line explains; 0 where std is constant.
    """

    slope: float
    r2: float


def proportionality(magnitude: Float[Tensor, " n"], std: Float[Tensor, " n"]) -> Proportionality:
    """Fit the line, in float64.

    Args:
        magnitude: ``|gamma|`` of each grid value.
        std: Standard deviation of the predicted weights there.
    """
    x, y = magnitude.double(), std.double()
    x, deviation = x - x.mean(), y - y.mean()
    explained, total = x @ x, deviation @ deviation
    if explained == 0 or total == 0:
        return Proportionality(0.0, 0.0)
    slope = (x @ deviation) / explained
    r2 = (x @ deviation) ** 2 / (explained * total)
    return Proportionality(float(slope / y.mean()), float(r2))


@torch.no_grad()
def weight_std(model: HyperModel, grid: Float[Tensor, "n D"]) -> dict[str, Float[Tensor, " n"]]:
    """Standard deviation of the predicted weights at each gamma of a grid.

    Returns:
        For ``all`` and for each predicted tensor, its std over its elements (population form, so
        that a tensor of one element has 0), on the CPU.
    """
    stds: dict[str, list[Tensor]] = defaultdict(list)
    for gamma in grid:
        theta = model.theta(gamma)
        stds[ALL].append(torch.cat([t.flatten() for t in theta.values()]).std(correction=0))
        for name, tensor in theta.items():
            stds[name].append(tensor.std(correction=0))
    return {name: torch.stack(values).cpu() for name, values in stds.items()}


class PredictedWeightStats(Callback):
    """Records std(theta) over the prior's grid: before training, every N epochs, at the end.

    Writes ``predicted_weight_stats.csv`` (a row for each step, tensor and gamma) and the figure
    ``predicted_weight_stats.png`` to the run's folder, the figure also to TensorBoard, and logs
    ``proportionality/slope`` and ``proportionality/r2``.

    Args:
        every_n_epochs: Record at the end of each N-th epoch.
        grid_size: Number of gamma on the grid.

    Raises:
        UsageError: If a value is below 1, or the module is no HyperLightningModule.

    Example::

        trainer:
          callbacks:
            - class_path: PredictedWeightStats
              init_args: {every_n_epochs: 5}
    """

    def __init__(self, every_n_epochs: int = 1, grid_size: int = 11) -> None:
        if every_n_epochs < 1:
            raise UsageError(f"every_n_epochs={every_n_epochs}: give 1 or more")
        if grid_size < 2:
            raise UsageError(f"grid_size={grid_size}: a line needs at least 2 values of gamma")
        self.every_n_epochs = every_n_epochs
        self.grid_size = grid_size
        self._folder = Path()
        self._grid = torch.empty(0, 0)
        self._table: StepTable | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Learn the run's folder, on all ranks."""
        if not isinstance(pl_module, HyperLightningModule):
            raise UsageError(
                f"PredictedWeightStats on a {type(pl_module).__name__}: it needs a"
                " HyperLightningModule"
            )
        self._folder = run_folder(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record before training, or go on where a resumed run stopped."""
        if not writes_files(trainer):
            return
        model = _model(pl_module)
        self._grid = model.prior.grid(self.grid_size)
        self._table = StepTable(
            self._folder / "predicted_weight_stats.csv",
            ["step", "epoch", "tensor", *model.prior.names, "std"],
            trainer.global_step if trainer.ckpt_path else None,
        )
        if self._table.last_step < trainer.global_step:
            self._record(trainer, model, trainer.current_epoch)
        self._draw(trainer, model)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record every N epochs."""
        if self._table and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._record(trainer, _model(pl_module), trainer.current_epoch + 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the end, draw the figure and say where it is."""
        if not self._table:
            return
        model = _model(pl_module)
        if self._table.last_step < trainer.global_step:
            self._record(trainer, model, trainer.current_epoch)
        self._draw(trainer, model)
        rank_zero_info(f"Scale of the predicted weights: {self._figure_path}")

    @property
    def _figure_path(self) -> Path:
        assert self._table is not None
        return self._table.path.with_suffix(".png")

    def _record(self, trainer: Trainer, model: HyperModel, epoch: int) -> None:
        assert self._table is not None
        stds = weight_std(model, self._grid)
        self._table.append(
            {
                "step": trainer.global_step,
                "epoch": epoch,
                "tensor": name,
                **dict(zip(model.prior.names, gamma, strict=True)),
                "std": value,
            }
            for name, values in stds.items()
            for gamma, value in zip(self._grid.tolist(), values.tolist(), strict=True)
        )
        fit = proportionality(self._grid.norm(dim=1), stds[ALL])
        for logger in trainer.loggers:
            logger.log_metrics(
                {"proportionality/slope": fit.slope, "proportionality/r2": fit.r2},
                step=trainer.global_step,
            )

    def _draw(self, trainer: Trainer, model: HyperModel) -> None:
        assert self._table is not None
        records: dict[str, WeightStds] = {}
        for row in self._table.rows:
            step, epoch = int(row["step"]), row["epoch"]
            when = "before training" if step == 0 else f"after epoch {epoch} (step {step})"
            stds = records.setdefault(when, defaultdict(list))
            stds[str(row["tensor"])].append(float(row["std"]))
        figure = Figure(figsize=(13, 4.8), layout="constrained")
        figure.suptitle(
            f"Scale of the predicted weights of {type(model.primary).__name__},"
            f" formulation: {model.formulation}"
        )
        left, right = figure.subplots(1, 2)
        times = list(records)
        first, last = times[0], times[-1]
        names = model.prior.names
        both = {when: records[when][ALL] for when in (first, last)}
        _draw_together(left, names, self._grid, both)
        _draw_each(right, names, self._grid, records[last], last)
        publish_figure(trainer, figure, self._figure_path)


def _draw_together(
    axes: Axes, gammas: Sequence[str], grid: Float[Tensor, "n D"], records: dict[str, list[float]]
) -> None:
    """The std of all weights against gamma, with the line's slope and R^2 in the legend."""
    x, order = _prepare(axes, gammas, grid)
    for style, (when, stds) in zip(("o--", "s-"), records.items(), strict=False):
        std = torch.tensor(stds)
        fit = proportionality(grid.norm(dim=1), std)
        label = f"{when}: slope {fit.slope:+.2f}, $R^2$ {fit.r2:.2f}"
        axes.plot(x[order], std[order], style, label=label)
    axes.set_title("all predicted weights together")
    axes.set_ylim(0, 1.1 * max(max(stds) for stds in records.values()) or None)
    axes.legend(fontsize="small")


def _draw_each(
    axes: Axes, gammas: Sequence[str], grid: Float[Tensor, "n D"], stds: WeightStds, when: str
) -> None:
    """The std of each tensor against gamma, in the order of the network's tensors."""
    x, order = _prepare(axes, gammas, grid)
    names = [name for name in stds if name != ALL]
    colors = colormaps["viridis"](torch.linspace(0, 0.9, len(names)).tolist())
    for color, name in zip(colors, names, strict=True):
        style = ".:" if name.endswith("bias") else ".-"
        axes.plot(x[order], torch.tensor(stds[name])[order], style, color=color, label=name)
    axes.set_title(f"each of {len(names)} tensors, {when}")
    axes.set_yscale("log" if any(max(stds[name]) > 0 for name in names) else "linear")
    if len(names) <= MAX_LEGEND:
        axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))


def _prepare(
    axes: Axes, gammas: Sequence[str], grid: Float[Tensor, "n D"]
) -> tuple[Tensor, Tensor]:
    """Label the axes; gamma itself is the horizontal one where D = 1, else its norm."""
    one = grid.shape[1] == 1
    axes.set_xlabel(
        f"hypernetwork input {symbol(gammas[0])}" if one else r"norm of the input $|\gamma|$"
    )
    axes.set_ylabel(r"standard deviation of $\theta$")
    axes.grid(alpha=0.3)
    x = grid[:, 0] if one else grid.norm(dim=1)
    return x, x.argsort()


def _model(pl_module: LightningModule) -> HyperModel:
    assert isinstance(pl_module, HyperLightningModule)  # setup has refused any other
    return pl_module.model
