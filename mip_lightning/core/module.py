"""HyperLightningModule: draws gamma, runs the hypermodel, logs, and sweeps gamma in evaluation."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRScheduler
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import Metric
from typing_extensions import override

from mip_lightning.core._checkpointing import check_same_architecture, check_same_tensors, way_out
from mip_lightning.core._evaluated_samples import EvaluatedSamples
from mip_lightning.core._given_hyperparameters import save_plain_hyperparameters
from mip_lightning.core._minibatch import DrawnGamma, EvaluationDraws, StepOutput, batch_size
from mip_lightning.core.parameter_groups import (
    GroupOptions,
    check_groups,
    check_options,
    parameter_groups,
)
from mip_lightning.core.requested_gamma import RequestedGamma
from mip_lightning.core.sweep import Curve, GammaSweep, restart
from mip_lightning.errors import NonFiniteError, UsageError
from mip_lightning.hypernetworks.hypermodel import Formulation, HyperModel
from mip_lightning.hypernetworks.hypernetwork import HypernetworkConfig
from mip_lightning.hypernetworks.theta import ThetaConfig
from mip_lightning.optim.optimizers import FactoredAdam, describe_update
from mip_lightning.priors import Gamma, Joint, Prior
from mip_lightning.utilities.files import check_unchanged
from mip_lightning.utilities.finite import first_not_finite, trained_weights
from mip_lightning.utilities.nested import Inputs
from mip_lightning.utilities.precision import at_least_float32

DrawsPerBatch: TypeAlias = int | Literal["one_per_sample"]
"""K, or one gamma a sample (K = B)."""

Module = TypeVar("Module", bound="HyperLightningModule")

Stage: TypeAlias = Literal["val", "test"]
"""Validation or test, as names of logged values begin."""


class HyperLightningModule(LightningModule, ABC):
    """Trains a primary network whose weights a hypernetwork predicts.

    A new task overrides ``loss`` and, if it has metrics, ``configure_metrics``. Training draws
    gamma from the prior. Validation and test sweep the prior's grid and log each metric averaged
    over gamma (``val_accuracy``) and at the best gamma (``val_accuracy_best``); ``curves`` then
    holds it at each gamma. A metric of predictions that are NaN is NaN.

    Lightning's hooks are free to be overridden, with or without ``super()``: what this module does
    at them, it does in a callback of its own.

    Args:
        primary: The primary network, any module.
        prior: p(gamma).
        formulation: ``default``, ``input``, ``output`` or ``mip``.
        hypernetwork: Architecture of the hypernetwork.
        theta: Which parameters are predicted, and how theta0 starts and trains.
        group_options: Options of the optimizer that differ for a part of the model (``theta0``,
            ``ordinary``, ``trunk``, ``head``), such as ``{"theta0": {"lr": 1e-5}}``.
        draws_per_batch: K, the number of gamma drawn for a training batch, which must divide it;
            or ``one_per_sample``.
        validation_grid_size: Number of gamma over which validation sweeps.
        test_grid_size: Number of gamma over which test sweeps.

    Raises:
        UsageError: If ``draws_per_batch`` or the size of a grid is below 1, a part or a metric has
            an impossible name, or as ``HyperModel`` raises.

    Example::

        class Denoising(HyperLightningModule):
            def loss(self, batch, gamma):
                noisy, clean = batch
                return F.mse_loss(self(noisy, gamma), clean)
    """

    monitor: ClassVar[str] = "val_loss"
    """The logged value by which the best checkpoint is chosen."""

    mode: ClassVar[Literal["min", "max"]] = "min"
    """Whether a small or a large ``monitor`` is good."""

    ranks_share_gamma: bool = False
    """Whether all ranks draw the same gamma: so that none waits, where it sets sizes."""

    predicts_volumes: ClassVar[bool] = False
    """Whether ``predict_step`` gives a list of ``Volume``, which go to NIfTI files."""

    def __init__(
        self,
        primary: nn.Module,
        prior: Prior,
        formulation: Formulation = "mip",
        hypernetwork: HypernetworkConfig = HypernetworkConfig(),
        theta: ThetaConfig = ThetaConfig(),
        group_options: GroupOptions | None = None,
        draws_per_batch: DrawsPerBatch = 1,
        validation_grid_size: int = 5,
        test_grid_size: int = 11,
    ) -> None:
        super().__init__()
        frame = inspect.currentframe()
        assert frame is not None  # CPython has frames
        save_plain_hyperparameters(self, frame)
        if draws_per_batch != "one_per_sample" and draws_per_batch < 1:
            raise UsageError(
                f"draws_per_batch={draws_per_batch}: draw 1 or more, or 'one_per_sample'"
            )
        for name, size in (
            ("validation_grid_size", validation_grid_size),
            ("test_grid_size", test_grid_size),
        ):
            if size < 1:
                raise UsageError(f"{name}={size}: sweep over 1 gamma or more")
        self.group_options = group_options or {}
        check_groups(self.group_options)
        self.theta_decay = theta.weight_decay
        self.model = HyperModel(primary, prior, formulation, hypernetwork, theta)
        self.draws_per_batch = draws_per_batch
        self.gamma_seed = torch.initial_seed()
        self.validation_sweep = GammaSweep(
            prior.grid(validation_grid_size), self.configure_metrics()
        )
        self.test_sweep = GammaSweep(prior.grid(test_grid_size), self.configure_metrics())
        self.curves: dict[str, Curve] = {}
        self.extra_values: dict[str, Tensor] = {}
        self.label_names: Mapping[int, str] = {}
        self.evaluated = EvaluatedSamples()
        self.requested: RequestedGamma | None = None
        self._drawn: DrawnGamma | None = None
        self.evaluation_draws = EvaluationDraws()
        self._latest: tuple[StepOutput, Tensor] | None = None

    @abstractmethod
    def loss(self, batch: Any, gamma: Float[Tensor, "K D"]) -> Float[Tensor, ""] | StepOutput:
        """The loss of a batch at K draws of gamma; override it.

        Call the primary as ``self(inputs, gamma)``.

        Args:
            batch: What the data loader gives.
            gamma: The draws.

        Returns:
            The loss, or a ``StepOutput`` with what the metrics take.
        """

    def configure_metrics(self) -> dict[str, Metric]:
        """The task's metrics by name; none unless overridden."""
        return {}

    def forward(self, inputs: Inputs, gamma: Gamma) -> Any:
        """Run the primary with the weights predicted at gamma, as ``HyperModel.forward`` does.

        A gamma that this module drew for the current step is not checked, so that the step does
        not wait for the device, and its weights are predicted once however often it is called.
        """
        if self._drawn is not None and gamma is self._drawn.gamma:
            return self._drawn.run(self.model, inputs)
        return self.model(inputs, gamma)

    def sample_gamma(self, batch: Any, batch_idx: int) -> Float[Tensor, "K D"]:
        """Draw gamma for a training batch.

        A function of the seed, the epoch, the batch index and the rank alone, so that a resumed
        run draws what the undisturbed one would have drawn. Of the rank only where ranks do not
        share gamma.
        """
        num_draws = (
            batch_size(batch) if self.draws_per_batch == "one_per_sample" else self.draws_per_batch
        )
        rank = 0 if self.ranks_share_gamma else self.global_rank
        entropy = [self.gamma_seed, self.current_epoch, batch_idx, rank]
        (seed,) = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(seed))
        return self.model.prior.sample(num_draws, generator)

    def training_step(self, batch: Any, batch_idx: int) -> STEP_OUTPUT:
        """Draw gamma, compute the loss, and log both."""
        raw = self.sample_gamma(batch, batch_idx)
        # Moved here and not by the logger, whose copy would wait for the device.
        gamma = raw.to(self.device, non_blocking=True)
        size = batch_size(batch)
        with self._draws(DrawnGamma(gamma, raw)) as drawn:
            output = self._output(batch, gamma)
            objective = output.loss
            if self.theta_decay:
                theta = drawn.theta(self.model)
                square = sum(tensor.square().sum() for tensor in theta.values())
                objective = objective + self.theta_decay / 2 * square / len(gamma)
        # Not with prog_bar=True, for which Lightning waits for the values after every batch.
        for name, value in self.gamma_by_name(gamma).items():
            self.log(name, value, batch_size=size)
        self.log("train_loss", output.loss, batch_size=size)
        self._latest = output.detached(), gamma
        return objective

    @property
    def latest_gamma(self) -> Float[Tensor, "K D"]:
        """The gamma of the latest training batch, on its device.

        Raises:
            UsageError: If there was no training batch yet.
        """
        if self._latest is None:
            raise UsageError("latest_gamma: there was no training batch yet")
        return self._latest[1]

    @property
    def latest_loss(self) -> Float[Tensor, ""]:
        """The loss of the latest training batch, on its device, as the task gave it.

        Raises:
            UsageError: If there was no training batch yet.
        """
        if self._latest is None:
            raise UsageError("latest_loss: there was no training batch yet")
        return self._latest[0].loss

    @property
    def latest_output(self) -> StepOutput | None:
        """What the task said of the latest training batch; ``None`` before the first."""
        return None if self._latest is None else self._latest[0]

    @property
    def monitored_metric(self) -> str:
        """Name of the metric of which ``monitor`` is the mean over gamma or the best."""
        return self.monitor.removeprefix("val_").removesuffix("_best")

    def plot_examples(self, batch: Any, gammas: Float[Tensor, "n D"]) -> dict[str, Figure]:
        """Figures of a batch at some gamma, by name; none unless overridden.

        Args:
            batch: What the data loader gives, on this module's device.
            gammas: Values of gamma from the prior's grid.
        """
        return {}

    def sample_names(self, batch: Any) -> Sequence[str]:
        """The name of each sample of a batch, by which gamma is chosen and files are named.

        Raises:
            UsageError: If the task, or its data, gives them no names.
        """
        raise UsageError(f"{type(self).__name__}: the samples of this batch have no names")

    def requested_gamma(self, name: str) -> Float[Tensor, "K D"]:
        """The gamma at which ``predict`` was asked to predict a sample.

        Args:
            name: Name of the sample.

        Raises:
            UsageError: If none was asked for.
        """
        if self.requested is None:
            raise UsageError(f"{type(self).__name__} predicts at a gamma: give predict --gamma 0.3")
        return self.requested.of_sample(name)

    def configure_callbacks(self) -> list[Callback]:
        """The callback that does this module's own work; add yours to it by ``super()``."""
        callbacks: Sequence[Any] = getattr(self.trainer, "callbacks", ())
        return [] if any(isinstance(c, OwnWork) for c in callbacks) else [OwnWork()]

    def extra_metrics(self, stage: Stage) -> Mapping[str, Metric]:
        """Metrics that are not swept, by the names under which they are logged; none by default.

        Args:
            stage: ``val`` or ``test``.
        """
        return {}

    def update_extra_metrics(self, batch: Any, stage: Stage) -> None:
        """Add a batch to ``extra_metrics``; override it with them.

        Args:
            batch: What the data loader gives.
            stage: ``val`` or ``test``.
        """

    @property
    def references(self) -> dict[str, tuple[str, float]]:
        """What figures show beside a metric, by its name: a label and a value; none by default."""
        return {}

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Override it to make predictions; until then a task has none.

        Raises:
            UsageError: Always.
        """
        task = type(self).__name__
        raise UsageError(f"{task} does not say how to predict: override its predict_step")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add the batch at each gamma of the validation grid, and to the extra metrics."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add the batch at each gamma of the test grid, and to the extra metrics."""
        self._evaluate(batch, "test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam at the paper's learning rate; the command line's optimizer replaces it."""
        return FactoredAdam(self.parameter_groups(), lr=3e-4)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The trained parameters by part, as an optimizer takes them, with each part's options."""
        return parameter_groups(self.parameters(), self.model, self.group_options)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what this module needs; of weights alone Lightning asks no callback."""
        if "architecture" not in checkpoint:  # else the callback has kept it
            self.keep_in_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take what was kept; in evaluation Lightning asks no callback."""
        self.take_from_checkpoint(checkpoint)

    def keep_in_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the seed of the gamma stream, the state of torch's, and what tensors do not tell.

        Raises:
            NonFiniteError: If a weight is not finite.
        """
        self.check_weights()
        checkpoint["gamma_seed"] = self.gamma_seed
        checkpoint["random_state"] = torch.get_rng_state()
        checkpoint["architecture"] = self.model.describe()

    def take_from_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the streams of random numbers; refuse the checkpoint of another model.

        On one rank a run that is resumed at the end of an epoch so goes on with the batches,
        augmentations and dropout (on a CPU) of the undisturbed one, unless other processes load
        them. On several, each has a stream of its own, and the checkpoint that of one.

        Raises:
            UsageError: If names or shapes of the checkpoint's tensors differ from this model's,
                its prior, encoding or trunk does, or a weight is not finite.
        """
        self.gamma_seed = checkpoint.get("gamma_seed", self.gamma_seed)
        if self._resumes_alone() and "random_state" in checkpoint:
            torch.set_rng_state(checkpoint["random_state"])
        if self.strict_loading:
            check_same_tensors(checkpoint["state_dict"], self.state_dict())
            check_same_architecture(checkpoint.get("architecture", {}), self.model.describe())
        found = checkpoint["state_dict"]
        weights = {name: found[name] for name in trained_weights(self) if name in found}
        if name := first_not_finite(weights):
            raise UsageError(
                f"ckpt_path: the checkpoint's {name} holds NaN or infinity: take another checkpoint"
            )

    def _resumes_alone(self) -> bool:
        """Whether a fit goes on, on one rank."""
        trainer = self._attached_trainer()
        return trainer is not None and (
            trainer.state.fn == TrainerFn.FITTING and trainer.world_size == 1
        )

    def _attached_trainer(self) -> Trainer | None:
        try:
            return self.trainer
        except RuntimeError:  # there is none
            return None

    @classmethod
    def load_from_checkpoint(  # a type variable and not Self, which shape checks do not know
        cls: type[Module], checkpoint_path: Any, *args: Any, **kwargs: Any
    ) -> Module:
        """Lightning's, once the checkpoint's bytes are seen to be those that were written.

        Raises:
            UsageError: If bytes of the file have changed.
        """
        if isinstance(checkpoint_path, (str, Path)) and Path(checkpoint_path).is_file():
            check_unchanged(checkpoint_path, "checkpoint_path")
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def evaluate_at(self, batch: Any, gamma: Float[Tensor, "K D"] | DrawnGamma) -> StepOutput:
        """The loss of a batch at gamma values that this module drew or took from a grid.

        Args:
            batch: What the data loader gives, on this module's device.
            gamma: The values; as ``DrawnGamma``, whose weights are predicted once for all batches.
        """
        drawn = gamma if isinstance(gamma, DrawnGamma) else DrawnGamma(gamma)
        with self._draws(drawn):
            return self._output(batch, drawn.gamma)

    def inputs_of(self, batch: Any, gamma: Float[Tensor, "K D"]) -> list[Inputs]:
        """What the task gives the primary for a batch, in the order of its calls.

        Args:
            batch: What the data loader gives.
            gamma: Draws, not checked.
        """
        seen: list[Inputs] = []
        hook = self.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            with self.without_logging():
                self.evaluate_at(batch, gamma)
        finally:
            hook.remove()
        return seen

    @contextmanager
    def without_logging(self) -> Iterator[None]:
        """While it lasts, what the task logs goes nowhere: it belongs to no step of the trainer."""
        outer = vars(self).get("log")
        setattr(self, "log", lambda *args, **kwargs: None)  # noqa: B010  # mypy: a method stays one
        try:
            yield
        finally:
            delattr(self, "log")
            if outer is not None:
                setattr(self, "log", outer)  # noqa: B010

    @contextmanager
    def _draws(self, drawn: DrawnGamma) -> Iterator[DrawnGamma]:
        """While it lasts, gamma is one that need not be checked."""
        self._drawn = drawn
        try:
            yield drawn
        finally:
            self._drawn = None

    def _output(self, batch: Any, gamma: Float[Tensor, "K D"]) -> StepOutput:
        output = self.loss(batch, gamma)
        if not isinstance(output, StepOutput):
            return StepOutput(output)
        prediction = output.prediction
        if isinstance(prediction, Tensor) and prediction.is_floating_point():
            output = output._replace(prediction=at_least_float32(prediction))  # metrics add them up
        return output

    def gamma_by_name(self, gamma: Float[Tensor, "K D"]) -> dict[str, Tensor]:
        """The mean of gamma; of a joint prior, the mean of each hyperparameter."""
        prior = self.model.prior
        if not isinstance(prior.base_prior, Joint):
            return {"gamma": gamma.mean()}
        return {f"gamma/{n}": v for n, v in zip(prior.names, gamma.mean(dim=0), strict=True)}

    def check_weights(self) -> None:
        """Look whether all weights are finite, which waits once for the device.

        Raises:
            NonFiniteError: If one is not.
        """
        name = first_not_finite(trained_weights(self))
        if name is None:
            return
        trainer = self._attached_trainer()
        if trainer is None or trainer.state.fn != TrainerFn.FITTING:
            raise NonFiniteError(f"{name} holds NaN or infinity: give weights that are finite")
        raise NonFiniteError(
            f"{name} holds NaN or infinity at step {trainer.global_step} (epoch"
            f" {trainer.current_epoch}): look for such numbers in the data, or {way_out(trainer)}"
            " with a lower learning rate; the callback TrainingStability names the step"
        )

    def sweep_of(self, stage: Stage) -> GammaSweep:
        """The sweep of validation or of test."""
        return self.validation_sweep if stage == "val" else self.test_sweep

    def start_evaluation(self, stage: Stage) -> None:
        """Reset all metrics, including leftovers of an interrupted evaluation.

        From now on the weights at each gamma of the grid are predicted once.
        """
        self.sweep_of(stage).restart(self.device)
        restart(self.extra_metrics(stage).values(), self.device)
        self.evaluated.start()
        self.evaluation_draws.start(self.model)

    def _evaluate(self, batch: Any, stage: Stage) -> None:
        trainer = self.trainer
        if not any(isinstance(callback, OwnWork) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise UsageError(
                f"{type(self).__name__}.configure_callbacks leaves out what this library does: add"
                " super().configure_callbacks() to what it returns"
            )
        loaders = trainer.val_dataloaders if stage == "val" else trainer.test_dataloaders
        own = self.evaluated.of(batch, loaders)
        if own is None:
            return
        sweep, size = self.sweep_of(stage), batch_size(own)
        for index, drawn in enumerate(self.evaluation_draws.of(self.model, sweep.grid)):
            sweep.update(index, self.evaluate_at(own, drawn), size)
        self.update_extra_metrics(own, stage)

    def finish_evaluation(self, stage: Stage) -> None:
        """Log the curves and the extra metrics."""
        self.evaluation_draws.stop()
        sweep = self.sweep_of(stage)
        self.curves = sweep.compute()
        for name, curve in self.curves.items():
            key = f"{stage}_{name}"
            # Every rank holds the same curve; the reduction only tells Lightning so.
            self.log(key, curve.mean, prog_bar=key == self.monitor, sync_dist=True)
            if curve.best is not None:
                best = f"{key}_best"
                self.log(
                    best, curve.values[curve.best], prog_bar=best == self.monitor, sync_dist=True
                )
                if sweep.grid.shape[1] == 1:
                    self.log(f"{key}_best_gamma", sweep.grid[curve.best, 0], sync_dist=True)
        metrics = self.extra_metrics(stage)
        self.extra_values = {name: metric.compute() for name, metric in metrics.items()}
        for name, value in self.extra_values.items():
            self.log(f"{stage}_{name}", value, sync_dist=True)

    def start_batch(self) -> None:
        """What a task does before each training batch; nothing by default."""

    def start_training(self) -> None:
        """Refuse options of a part that its optimizer does not have; say how the head is updated.

        Raises:
            UsageError: If there is one.
        """
        for optimizer in self.trainer.optimizers:
            check_options(optimizer, self.group_options)
        # Ranks that share gamma draw it from one seed, even where each was seeded by itself.
        self.gamma_seed = self.trainer.strategy.broadcast(self.gamma_seed)
        num_draws = None if self.draws_per_batch == "one_per_sample" else self.draws_per_batch
        head = self.model.hypernetwork.head
        rank_zero_info(describe_update(head.factored_weight, num_draws, self.trainer.optimizers))


class OwnWork(Callback):
    """What a ``HyperLightningModule`` does at Lightning's hooks.

    A callback, so that a user's override of a hook, which need not call ``super()``, leaves nothing
    of it out. Callbacks come before the module at each hook.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        module = own(pl_module)
        module.label_names = getattr(trainer.datamodule, "label_names", {})  # type: ignore[attr-defined]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        own(pl_module).start_training()

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        own(pl_module).keep_in_checkpoint(checkpoint)

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        own(pl_module).take_from_checkpoint(checkpoint)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        own(pl_module).start_batch()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        own(pl_module).check_weights()

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            own(pl_module).check_weights()

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        own(pl_module).start_evaluation("val")

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        own(pl_module).finish_evaluation("val")

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        own(pl_module).check_weights()

    @override
    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        own(pl_module).start_evaluation("test")

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        own(pl_module).finish_evaluation("test")

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        own(pl_module).check_weights()

    @override
    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = own(pl_module)
        module.evaluation_draws.start(module.model)

    @override
    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        own(pl_module).evaluation_draws.stop()


def own(pl_module: LightningModule) -> HyperLightningModule:
    """The module, which has made the callback itself."""
    assert isinstance(pl_module, HyperLightningModule)
    return pl_module
