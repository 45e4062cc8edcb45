"""GradientStats: how large gradients are, and how much they vary (paper, Figure 3c)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mip_lightning.callbacks._files import StepTable, publish_figure, writes_files
from mip_lightning.callbacks._records import MinibatchRecords
from mip_lightning.callbacks.base import HyperCallback, hyper_module, latest_batch
from mip_lightning.diagnostics._style import symbol
from mip_lightning.diagnostics.gradients import PARTS, GradientNorms
from mip_lightning.errors import UsageError

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

STATISTICS = (
    "count",
    "mean",
    "std",
    "coefficient_of_variation",
    "minimum",
    *(f"quantile_{100 * q:.0f}" for q in QUANTILES),
    "maximum",
)


class GradientStats(HyperCallback):
    """Records the norm of each minibatch's gradient, and statistics over each epoch's minibatches.

    Gradients are taken with respect to the predicted weights theta, to theta0, and to the trunk and
    the head of the hypernetwork; without the scaling of gradient accumulation and of mixed
    precision. Writes ``gradient_norms.csv`` (a row for each recorded minibatch of each rank, with
    the gamma it drew), ``gradient_stats.csv`` (mean, standard deviation, their ratio, extremes and
    quantiles of each epoch, over the minibatches of all ranks), and the figure
    ``gradient_stats.png``; logs ``gradient_norm/theta`` and the others.

    Args:
        every_n_steps: Record each N-th minibatch of an epoch.

    Raises:
        UsageError: If a value is below 1, or the module is no HyperLightningModule.

    Example::

        trainer:
          callbacks:
            - class_path: GradientStats
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        if every_n_steps < 1:
            raise UsageError(f"every_n_steps={every_n_steps}: give 1 or more")
        self.every_n_steps = every_n_steps
        super().__init__()
        self._watch: GradientNorms | None = None
        self._norms: dict[str, Tensor] = {}
        self._records = MinibatchRecords(())
        self._minibatches: StepTable | None = None
        self._epochs: StepTable | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the tables, or go on with those of a resumed run."""
        gammas = hyper_module(pl_module).model.prior.names
        columns = ["step", "epoch", "batch", "rank", *gammas, *PARTS]
        self._records = MinibatchRecords(columns)
        if writes_files(trainer):
            resumed_at = trainer.global_step if trainer.ckpt_path else None
            self._minibatches = StepTable(self.folder / "gradient_norms.csv", columns, resumed_at)
            self._epochs = StepTable(
                self.folder / "gradient_stats.csv",
                ["step", "epoch", "part", *STATISTICS],
                resumed_at,
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Watch this minibatch's backward pass, if it is one to record."""
        self._remove_hooks()  # the last one had no backward pass, or failed in it
        if batch_idx % self.every_n_steps == 0:
            self._watch = GradientNorms(hyper_module(pl_module).model).__enter__()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the norms, on the device."""
        if self._watch is None:
            return
        scale = _loss_scale(trainer, pl_module.device)
        self._norms = {name: norm / scale for name, norm in self._watch.norms().items()}
        self._remove_hooks()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep the norms for the epoch, and log them where loggers want them."""
        if not self._norms:
            return
        gamma = latest_batch(pl_module).gamma
        place = [trainer.global_step, trainer.current_epoch, batch_idx, trainer.global_rank]
        self._records.add([*place, *gamma.mean(dim=0).unbind(), *self._norms.values()])
        if trainer.is_last_batch or _is_logged(trainer):
            for name, norm in self._norms.items():
                pl_module.log(f"gradient_norm/{name}", norm, batch_size=1)
        self._norms = {}

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Watch no more."""
        self._remove_hooks()

    def _remove_hooks(self) -> None:
        if self._watch is not None:
            self._watch.__exit__(None, None, None)
            self._watch = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather from all ranks, and write."""
        self._remove_hooks()
        columns = self._records.columns
        rows = self._records.gather(trainer)
        if self._minibatches is None or self._epochs is None or not len(rows):
            return
        order = sorted(range(len(rows)), key=lambda i: rows[i, [0, 2, 3]].tolist())
        self._minibatches.append(
            {
                name: int(value) if name in ("step", "epoch", "batch", "rank") else value
                for name, value in zip(columns, row, strict=True)
            }
            for row in rows[order].tolist()
        )
        self._epochs.append(
            {
                "step": trainer.global_step,
                "epoch": trainer.current_epoch + 1,
                "part": part,
                **statistics(rows[:, columns.index(part)]),
            }
            for part in PARTS
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the figure and say where it is."""
        if self._epochs is None or self._minibatches is None or not self._epochs.rows:
            return
        model = hyper_module(pl_module).model
        figure = draw(self._epochs.rows, self._minibatches.rows, model.prior.names)
        figure.suptitle(
            f"Gradients of {type(model.primary).__name__}, formulation: {model.formulation}"
        )
        path = self._epochs.path.with_suffix(".png")
        publish_figure(trainer, figure, path)
        rank_zero_info(f"Gradients: {path}")


def statistics(values: Float[Tensor, " n"]) -> dict[str, float]:
    """``STATISTICS`` of numbers, in float64; standard deviation with n - 1, 0 where n is 1."""
    values = values.double()
    mean = float(values.mean())
    std = float(values.std()) if len(values) > 1 else 0.0
    quantiles = torch.quantile(values, torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    figures = [len(values), mean, std, std / mean if mean else 0.0]
    figures += [float(values.min()), *quantiles, float(values.max())]
    return dict(zip(STATISTICS, figures, strict=True))


def draw(
    epochs: list[Mapping[str, Any]], minibatches: list[Mapping[str, Any]], gammas: tuple[str, ...]
) -> Figure:
    """Mean and standard deviation against epochs, and the norm against the gamma drawn.

    Args:
        epochs: Rows of ``gradient_stats.csv``.
        minibatches: Rows of ``gradient_norms.csv``.
        gammas: Name of each dimension of gamma.
    """
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for color, part in enumerate(PARTS):
        _draw_epochs(left, f"C{color}", part, [row for row in epochs if row["part"] == part])
    left.set_title("mean over each epoch's minibatches, ± standard deviation")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_xlabel("epoch")
    left.set_ylabel("norm of the gradient")
    _scale(left, [float(row["mean"]) for row in epochs])
    left.grid(alpha=0.3)
    left.legend(fontsize="small", title="with respect to")
    gamma = torch.tensor([[float(row[name]) for name in gammas] for row in minibatches])
    x = gamma[:, 0] if len(gammas) == 1 else gamma.norm(dim=1)
    norms = [float(row["theta"]) for row in minibatches]
    points = right.scatter(
        x,
        norms,
        c=[int(row["epoch"]) + 1 for row in minibatches],
        s=6,
    )
    figure.colorbar(points, ax=right, label="epoch")
    right.set_title(r"each minibatch, with respect to $\theta$")
    right.set_xlabel(
        f"hypernetwork input {symbol(gammas[0])}" if len(gammas) == 1 else r"norm of $\gamma$"
    )
    right.set_ylabel(r"norm of the gradient with respect to $\theta$")
    _scale(right, norms)
    right.grid(alpha=0.3)
    return figure


def _draw_epochs(axes: Axes, color: str, part: str, rows: list[Mapping[str, Any]]) -> None:
    epoch = [int(row["epoch"]) for row in rows]
    mean, std = (torch.tensor([float(row[name]) for row in rows]) for name in ("mean", "std"))
    label = {"theta": r"$\theta$", "theta0": r"$\theta^0$"}.get(part, part)
    axes.plot(epoch, mean, ".-", color=color, label=label)
    lowest = torch.minimum(mean, torch.tensor([float(row["minimum"]) for row in rows]))
    axes.fill_between(epoch, torch.maximum(mean - std, lowest), mean + std, color=color, alpha=0.2)


def _scale(axes: Axes, norms: list[float]) -> None:
    """A logarithmic scale, unless all norms are 0 or none is a number."""
    axes.set_yscale("log" if any(0 < norm < math.inf for norm in norms) else "linear")


def _is_logged(trainer: Trainer) -> bool:
    """Whether Lightning hands what is logged at this step to loggers; to log it costs time."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a part of it
    return every > 0 and trainer.global_step % every == 0


def _loss_scale(trainer: Trainer, device: torch.device) -> Tensor:
    """What Lightning has multiplied the loss by: mixed precision's scale over the accumulation."""
    scale = torch.ones((), device=device)
    plugin = trainer.precision_plugin
    if isinstance(plugin, MixedPrecision) and plugin.scaler is not None:
        scale = plugin.scaler.scale(scale)  # unlike get_scale, it does not wait for the device
    return scale / trainer.accumulate_grad_batches
