"""Norms of minibatches' gradients, taken before anything scales or adds them up; their figure."""

import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mip_lightning.diagnostics._style import symbol
from mip_lightning.functional.factored_gradient import FactoredGradient
from mip_lightning.hypernetworks.heads import DenseHead
from mip_lightning.hypernetworks.hypermodel import HyperModel
from mip_lightning.utilities.norms import norm

PARTS = ("theta", "theta0", "trunk", "head")
"""What the gradient is taken with respect to; ``theta`` are the predicted weights."""


class GradientNorms:
    """Watches one backward pass of a hypermodel.

    The hooks see the gradient of this minibatch alone, before it is added to those of earlier ones,
    and before ranks average theirs. The gradients with respect to theta0 and to a dense head are
    never formed for it: with ``g_k`` the gradient with respect to the k-th predicted change and
    ``h_k`` the last hidden activation they are ``sum_k g_k`` and ``sum_k g_k h_k^T``.

    Args:
        model: The model.
    """

    def __init__(self, model: HyperModel) -> None:
        self._model = model
        self._handles: list[RemovableHandle] = []
        self._hidden: list[Float[Tensor, "K H"]] = []
        self._changes: list[tuple[int, Float[Tensor, "K P"]]] = []
        self._squares: dict[str, list[Tensor]] = {"trunk": [], "head": []}

    def __enter__(self) -> "GradientNorms":
        head = self._model.hypernetwork.head
        self._handles.append(head.register_forward_hook(self._watch_change))
        own = set(head.parameters())
        for parameter in self._model.hypernetwork.parameters():
            part = "head" if parameter in own else "trunk"
            if parameter.requires_grad and not (part == "head" and isinstance(head, DenseHead)):
                self._handles.append(parameter.register_hook(self._squares_of(part)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def norms(self) -> dict[str, Float[Tensor, ""]]:
        """The norm for each of ``PARTS``, after the backward pass.

        Returns:
            Scalars on the model's device; for ``theta`` of K draws the norm of all K gradients
            together.
        """
        zero = next(self._model.hypernetwork.parameters()).new_zeros(())
        if not self._changes:
            return dict.fromkeys(PARTS, zero)
        gradient = torch.cat([change for _, change in self._changes]).float()
        norms = {name: sum(values, zero).sqrt() for name, values in self._squares.items()}
        if isinstance(self._model.hypernetwork.head, DenseHead):
            hidden = torch.cat([self._hidden[index] for index, _ in self._changes]).float()
            norms["head"] = FactoredGradient(gradient, hidden).norm()
        return {"theta": norm(gradient), "theta0": norm(gradient.sum(dim=0)), **norms}

    def _watch_change(self, head: nn.Module, inputs: tuple[Any, ...], change: Tensor) -> None:
        if not change.requires_grad:
            return
        index = len(self._hidden)
        self._hidden.append(inputs[0].detach())
        change.register_hook(lambda gradient: self._changes.append((index, gradient.detach())))

    def _squares_of(self, part: str) -> Any:
        def add(gradient: Tensor) -> None:
            self._squares[part].append(norm(gradient.detach()).square())

        return add


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


def statistics(values: Float[Tensor, " n"]) -> dict[str, float]:
    """``STATISTICS`` of numbers, in float64; standard deviation with n - 1, 0 where n is 1."""
    values = values.double()
    mean = float(values.mean())
    std = float(values.std()) if len(values) > 1 else 0.0
    quantiles = torch.quantile(values, torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    figures = [len(values), mean, std, std / mean if mean else 0.0]
    figures += [float(values.min()), *quantiles, float(values.max())]
    return dict(zip(STATISTICS, figures, strict=True))


def plot_gradient_statistics(
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
    plot_norms(left, {_label(part): [r for r in epochs if r["part"] == part] for part in PARTS})
    left.set_title("mean over each epoch's minibatches, ± standard deviation")
    left.set_ylabel("norm of the gradient")
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


def plot_norms(axes: Axes, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Norms of gradients against epochs: mean and, as a band, standard deviation over minibatches.

    The band ends at the lowest norm, so that a logarithmic scale can show it.

    Args:
        axes: Where to plot.
        curves: Rows of ``gradient_stats.csv`` of one part, by what to call the curve.
    """
    for number, (label, rows) in enumerate(curves.items()):
        epoch = [int(row["epoch"]) for row in rows]
        mean, std, lowest = (
            torch.tensor([float(row[name]) for row in rows]) for name in ("mean", "std", "minimum")
        )
        (line,) = axes.plot(epoch, mean, ".-", color=f"C{number}", label=label)
        low = torch.maximum(mean - std, torch.minimum(mean, lowest))
        axes.fill_between(epoch, low, mean + std, color=line.get_color(), alpha=0.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    _scale(axes, [float(row["mean"]) for rows in curves.values() for row in rows])
    axes.grid(alpha=0.3)


def _label(part: str) -> str:
    return {"theta": r"$\theta$", "theta0": r"$\theta^0$"}.get(part, part)


def _scale(axes: Axes, norms: list[float]) -> None:
    """A logarithmic scale, unless all norms are 0 or none is a number."""
    axes.set_yscale("log" if any(0 < norm < math.inf for norm in norms) else "linear")
