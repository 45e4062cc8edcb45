"""CostCurve: how good the primary is at each gamma, against what it costs there."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from mip_lightning.callbacks._files import writes_files
from mip_lightning.callbacks.base import HyperCallback, hyper_module
from mip_lightning.core.module import HyperLightningModule
from mip_lightning.diagnostics.cost import (
    FLOPS,
    MILLISECONDS,
    ON_FRONT,
    PrimaryCost,
    pareto_front,
    plot_cost,
)
from mip_lightning.errors import UsageError
from mip_lightning.utilities.files import Value
from mip_lightning.utilities.nested import Inputs


class CostCurve(HyperCallback):
    """At the end of test, the accuracy-cost curve of one model over gamma, with its Pareto front.

    For each gamma of the test grid: FLOPs of the primary for a sample, counted (a multiplication
    and an addition are two), the wall time of a sample on this machine, each metric, and whether
    no other gamma is as good for fewer FLOPs. Written to ``test_cost_curve.csv`` and ``.png`` in
    the run's folder. Costs are of the first test batch, without the hypernetwork.

    Args:
        metric: The metric in the figure and of the front; by default the one that chooses
            checkpoints.

    Raises:
        UsageError: If the task has no such metric, or it has no better end.
    """

    def __init__(self, metric: str | None = None) -> None:
        super().__init__()
        self.metric = metric
        self._inputs: Inputs | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._inputs = None
        module = hyper_module(pl_module)
        metrics = module.configure_metrics()
        metric = self.metric or module.monitored_metric
        if metric != "loss" and (metric not in metrics or metrics[metric].higher_is_better is None):
            known = [n for n, m in metrics.items() if m.higher_is_better is not None]
            raise UsageError(f"metric={metric!r}: choose one of {', '.join(['loss', *known])}")

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0 and writes_files(trainer):
            module = hyper_module(pl_module)
            (self._inputs, *_) = module.primary_calls(batch, module.evaluation("test").grid[:1])

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._inputs is None:
            return
        module = hyper_module(pl_module)
        with trainer.precision_plugin.forward_context():
            rows = self._rows(module, self._inputs)
        table = self.table(trainer, "test_cost_curve.csv", list(rows[0]))
        table.append(rows)
        figure = plot_cost(rows, module.model.prior.names, self.metric or module.monitored_metric)
        figure.suptitle(
            f"{type(module.model.primary).__name__}: one model, its cost chosen by"
            r" $\gamma$ (test data)"
        )
        path = table.path.with_suffix(".png")
        self.publish(trainer, figure, path)
        rank_zero_info(f"Test metrics against cost: {path} (and .csv)")

    def _rows(self, module: HyperLightningModule, inputs: Inputs) -> list[dict[str, Value]]:
        result = module.evaluation("test").result
        assert result is not None  # the test has ended
        grid = result.grid
        cost = PrimaryCost(module.model, inputs)
        flops = [cost.flops(gamma) for gamma in grid]
        curve = result.curves[self.metric or module.monitored_metric]
        front = pareto_front(flops, curve.values.tolist(), bool(curve.higher_is_better))
        milliseconds = cost.milliseconds(grid)
        return [
            {
                **dict(zip(module.model.prior.names, gamma, strict=True)),
                FLOPS: flops[index],
                MILLISECONDS: milliseconds[index],
                **{name: float(other.values[index]) for name, other in result.curves.items()},
                ON_FRONT: int(front[index]),
            }
            for index, gamma in enumerate(grid.tolist())
        ]
