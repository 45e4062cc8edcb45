"""HyperLightningModule: draws gamma, runs the hypermodel, logs, and sweeps gamma in evaluation."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRScheduler
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import Metric

from mip_lightning.checkpoints import check_same_architecture, check_same_tensors
from mip_lightning.draws import Inputs
from mip_lightning.errors import UsageError
from mip_lightning.given_hyperparameters import save_plain_hyperparameters
from mip_lightning.hypermodel import Formulation, HyperModel
from mip_lightning.hypernetwork import HypernetworkConfig
from mip_lightning.minibatch import DrawnGamma, EvaluationDraws, StepOutput, batch_size
from mip_lightning.optimizers import FactoredAdam, describe_update
from mip_lightning.parts import PartOptions, check_options, check_parts, parameter_groups
from mip_lightning.priors import Gamma, Joint, Prior
from mip_lightning.requested_gamma import RequestedGamma
from mip_lightning.sweep import Curve, GammaSweep
from mip_lightning.theta import ThetaConfig

DrawsPerBatch: TypeAlias = int | Literal["one_per_sample"]
"""K, or one gamma a sample (K = B)."""


class HyperLightningModule(LightningModule, ABC):
    """Trains a primary network whose weights a hypernetwork predicts.

    A new task overrides ``loss`` and, if it has metrics, ``configure_metrics``. Training draws
    gamma from the prior. Validation and test sweep the prior's grid and log each metric averaged
    over gamma (``val_accuracy``) and at the best gamma (``val_accuracy_best``); ``curves`` then
    holds it at each gamma.

    Args:
        primary: The primary network, any module.
        prior: p(gamma).
        formulation: ``default``, ``input``, ``output`` or ``mip``.
        hypernetwork: Architecture of the hypernetwork.
        theta: Which parameters are predicted, and how theta0 starts and trains.
        part_options: Options of the optimizer that differ for a part of the model (``theta0``,
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
        part_options: PartOptions | None = None,
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
        self.part_options = part_options or {}
        check_parts(self.part_options)
        self.theta_decay = theta.weight_decay
        self.model = HyperModel(primary, prior, formulation, hypernetwork, theta)
        self.draws_per_batch = draws_per_batch
        self.gamma_seed = torch.initial_seed()
        self.validation_sweep = GammaSweep(
            prior.grid(validation_grid_size), self.configure_metrics()
        )
        self.test_sweep = GammaSweep(prior.grid(test_grid_size), self.configure_metrics())
        self.curves: dict[str, Curve] = {}
        self.label_names: Mapping[int, str] = {}
        # What figures show beside a metric, by its name: a label and a value.
        self.references: dict[str, tuple[str, float]] = {}
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

    def draw_gamma(self, batch: Any, batch_idx: int) -> Float[Tensor, "K D"]:
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
        raw = self.draw_gamma(batch, batch_idx)
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
        self._latest = output._replace(loss=output.loss.detach()), gamma
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

    def draw_examples(self, batch: Any, gammas: Float[Tensor, "n D"]) -> dict[str, Figure]:
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

    def setup(self, stage: str) -> None:
        """Learn the names of labels from the data, where it has them."""
        self.label_names = getattr(self.trainer.datamodule, "label_names", {})  # type: ignore[attr-defined]

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Override it to make predictions; until then a task has none.

        Raises:
            UsageError: Always.
        """
        task = type(self).__name__
        raise UsageError(f"{task} does not say how to predict: override its predict_step")

    def on_validation_epoch_start(self) -> None:
        """Start anew; the weights at each gamma of the grid are predicted once."""
        self.validation_sweep.reset()
        self.evaluation_draws.start(self.model)

    def on_test_epoch_start(self) -> None:
        """Start anew; the weights at each gamma of the grid are predicted once."""
        self.test_sweep.reset()
        self.evaluation_draws.start(self.model)

    def on_predict_epoch_start(self) -> None:
        """From now on the weights at each gamma are predicted once."""
        self.evaluation_draws.start(self.model)

    def on_predict_epoch_end(self) -> None:
        """The weights may change again."""
        self.evaluation_draws.stop()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add the batch at each gamma of the validation grid."""
        self._sweep(self.validation_sweep, batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add the batch at each gamma of the test grid."""
        self._sweep(self.test_sweep, batch)

    def on_validation_epoch_end(self) -> None:
        """Log the validation curves."""
        self._log_curves("val", self.validation_sweep)

    def on_test_epoch_end(self) -> None:
        """Log the test curves."""
        self._log_curves("test", self.test_sweep)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam at the paper's learning rate; the command line's optimizer replaces it."""
        return FactoredAdam(self.parameter_groups(), lr=3e-4)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The trained parameters by part, as an optimizer takes them, with each part's options."""
        return parameter_groups(self.parameters(), self.model, self.part_options)

    def on_train_start(self) -> None:
        """Refuse options of a part that its optimizer does not have; say how the head is updated.

        Raises:
            UsageError: If there is one.
        """
        for optimizer in self.trainer.optimizers:
            check_options(optimizer, self.part_options)
        # Ranks that share gamma draw it from one seed, even where each was seeded by itself.
        self.gamma_seed = self.trainer.strategy.broadcast(self.gamma_seed)
        num_draws = None if self.draws_per_batch == "one_per_sample" else self.draws_per_batch
        head = self.model.hypernetwork.head
        rank_zero_info(describe_update(head.factored_weight, num_draws, self.trainer.optimizers))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the seed of the gamma stream, the state of torch's, and what tensors do not tell."""
        checkpoint["gamma_seed"] = self.gamma_seed
        checkpoint["random_state"] = torch.get_rng_state()
        checkpoint["architecture"] = self.model.describe()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the streams of random numbers; refuse the checkpoint of another model.

        On one rank a run that is resumed at the end of an epoch so goes on with the batches,
        augmentations and dropout (on a CPU) of the undisturbed one, unless other processes load
        them. On several, each has a stream of its own, and the checkpoint that of one.

        Raises:
            UsageError: If names or shapes of the checkpoint's tensors differ from this model's, or
                its prior, encoding or trunk does.
        """
        self.gamma_seed = checkpoint.get("gamma_seed", self.gamma_seed)
        if self._resumes_alone() and "random_state" in checkpoint:
            torch.set_rng_state(checkpoint["random_state"])
        if self.strict_loading:
            check_same_tensors(checkpoint["state_dict"], self.state_dict())
            check_same_architecture(checkpoint.get("architecture", {}), self.model.describe())

    def _resumes_alone(self) -> bool:
        """Whether a fit goes on, on one rank."""
        try:
            trainer = self.trainer
        except RuntimeError:  # loaded without one
            return False
        return trainer.state.fn == TrainerFn.FITTING and trainer.world_size == 1

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
        return output if isinstance(output, StepOutput) else StepOutput(output)

    def gamma_by_name(self, gamma: Float[Tensor, "K D"]) -> dict[str, Tensor]:
        """The mean of gamma; of a joint prior, the mean of each hyperparameter."""
        prior = self.model.prior
        if not isinstance(prior.drawn_from, Joint):
            return {"gamma": gamma.mean()}
        return {f"gamma/{n}": v for n, v in zip(prior.names, gamma.mean(dim=0), strict=True)}

    def _sweep(self, sweep: GammaSweep, batch: Any) -> None:
        size = batch_size(batch)
        for index, drawn in enumerate(self.evaluation_draws.of(self.model, sweep.grid)):
            loss, prediction, target = self.evaluate_at(batch, drawn)
            sweep.update(index, loss, size, prediction, target)

    def _log_curves(self, stage: str, sweep: GammaSweep) -> None:
        self.evaluation_draws.stop()
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
