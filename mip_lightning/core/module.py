"""HyperLightningModule: samples gamma, trains the hypermodel, sweeps gamma in evaluation."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRScheduler
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import Metric
from typing_extensions import override

from mip_lightning.core._checkpointed_module import CheckpointedModule
from mip_lightning.core._given_hyperparameters import save_plain_hyperparameters
from mip_lightning.core._own_work import OwnWork, has_own_work
from mip_lightning.core._primary_cache import PrimaryCache
from mip_lightning.core.batches import DrawsPerBatch, batch_size, check_counts
from mip_lightning.core.evaluation import Evaluation, Stage
from mip_lightning.core.evaluations import Evaluations
from mip_lightning.core.gamma_source import GammaSource, SeenOutside, gamma_of_batch
from mip_lightning.core.outputs import StepOutput, TrainingBatch
from mip_lightning.core.own_gamma_evaluation import OwnGammaEvaluation
from mip_lightning.core.parameter_groups import (
    GroupOptions,
    check_groups,
    check_options,
    parameter_groups,
    restore_rates,
)
from mip_lightning.core.requested_gamma import RequestedGamma
from mip_lightning.core.without_logging import without_logging
from mip_lightning.errors import UsageError
from mip_lightning.hypernetworks.draws import DrawsConfig
from mip_lightning.hypernetworks.hypermodel import Formulation, HyperModel
from mip_lightning.hypernetworks.hypernetwork import HypernetworkConfig
from mip_lightning.hypernetworks.primary_at import PrimaryAtGamma
from mip_lightning.hypernetworks.theta import ThetaConfig
from mip_lightning.optim.optimizers import FactoredAdam, describe_update
from mip_lightning.priors import Gamma, Prior, sample_of_batch
from mip_lightning.utilities.nested import Arguments, Inputs
from mip_lightning.utilities.precision import real_numbers


class HyperLightningModule(CheckpointedModule, ABC):
    """Trains a primary network whose weights a hypernetwork predicts.

    A new task overrides ``loss`` and, if it has metrics, ``configure_metrics``. Training samples
    gamma from the prior. Validation and test sweep the prior's grid and log each metric averaged
    over gamma (``val_accuracy``) and at the best gamma (``val_accuracy_best``);
    ``evaluation("val").result`` then holds it at each gamma. A metric of predictions that are NaN
    is NaN.

    Lightning's hooks may be overridden without ``super()``: what this module does at them, it does
    in a callback of its own.

    Args:
        primary: The primary network, any module.
        prior: p(gamma).
        formulation: ``default``, ``input``, ``output`` or ``mip``.
        hypernetwork: Architecture of the hypernetwork.
        theta: Which parameters are predicted, and how theta0 starts and trains.
        draws: Where the samples of a batch lie that K draws share, and how the draws are run.
        group_options: Options of the optimizer that differ for a parameter group (``theta0``,
            ``ordinary``, ``trunk``, ``head``), such as ``{"theta0": {"lr": 1e-5}}``.
        draws_per_batch: K, the number of gamma sampled for a training batch, which must divide it;
            or ``one_per_sample``.
        gamma_source: Tells the gamma of a batch, which then is not sampled from the prior; ``None``
            for the prior.
        validation_grid_size: Number of gamma over which validation sweeps.
        test_grid_size: Number of gamma over which test sweeps.

    Attributes:
        brings_own_work: Whether the callback that does this module's work was brought along.
        learning_rate: What takes the place of the optimizer's learning rate, as
            ``LearningRateFinder`` sets it; ``None`` for none.
        optimizer_factory: What makes the optimizer in place of the default one; ``None`` for none.
        latest: Gamma and output of the latest training batch; ``None`` before the first.
        requested: The gamma at which ``predict`` was asked to predict; ``None`` for none.

    Raises:
        UsageError: If ``draws_per_batch`` or the size of a grid is below 1, a parameter group or a
            metric has an impossible name, or as ``HyperModel`` raises.

    Example::

        class Denoising(HyperLightningModule):
            def loss(self, batch, primary):
                noisy, clean = batch
                return F.mse_loss(primary(noisy), clean)
    """

    monitor: ClassVar[str] = "val_loss"
    """The logged value by which the best checkpoint is chosen."""

    mode: ClassVar[Literal["min", "max"]] = "min"
    """Whether a small or a large ``monitor`` is good."""

    ranks_share_gamma: bool = False
    """Whether all ranks sample the same gamma: so that none waits, where it sets sizes."""

    predicts_volumes: ClassVar[bool] = False
    """Whether ``predict_step`` gives a list of ``Volume``, which go to NIfTI files."""

    references: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """What figures show next to a metric, by its name: a label, and the extra metric it is."""

    def __init__(
        self,
        primary: nn.Module,
        prior: Prior,
        formulation: Formulation = "mip",
        hypernetwork: HypernetworkConfig = HypernetworkConfig(),
        theta: ThetaConfig = ThetaConfig(),
        draws: DrawsConfig = DrawsConfig(),
        group_options: GroupOptions | None = None,
        draws_per_batch: DrawsPerBatch = 1,
        gamma_source: GammaSource | None = None,
        validation_grid_size: int = 5,
        test_grid_size: int = 11,
    ) -> None:
        super().__init__()
        frame = inspect.currentframe()
        assert frame is not None  # CPython has frames
        save_plain_hyperparameters(self, frame)
        check_counts(draws_per_batch, validation_grid_size, test_grid_size)
        self.group_options = group_options or {}
        check_groups(self.group_options)
        self.theta_decay = theta.weight_decay
        self.model = HyperModel(primary, prior, formulation, hypernetwork, theta, draws)
        if gamma_source is not None and draws_per_batch != 1:
            raise UsageError(
                f"draws_per_batch={draws_per_batch}: gamma comes from gamma_source, which tells how"
                " many there are: leave the one or the other out"
            )
        self.draws_per_batch = draws_per_batch
        self.gamma_source = gamma_source
        self._seen_outside = SeenOutside()
        self.learning_rate: float | None = None
        self.brings_own_work = False
        self.optimizer_factory: Callable[[Any], OptimizerLRScheduler] | None = None
        self.label_names: Mapping[int, str] = {}
        self.requested: RequestedGamma | None = None
        self.predict_primaries = PrimaryCache(self.model)
        self._grid_sizes: dict[Stage, int] = {"val": validation_grid_size, "test": test_grid_size}
        self._evaluations = Evaluations(self._make_evaluation)
        self.latest: TrainingBatch | None = None

    @abstractmethod
    def loss(self, batch: Any, primary: PrimaryAtGamma) -> Float[Tensor, ""] | StepOutput:
        """The loss of a batch at K draws of gamma; override it.

        Args:
            batch: What the data loader gives.
            primary: The primary network with the weights at these draws: call it as the network
                itself. ``primary.gamma`` are the draws, shape ``(K, D)``, ``primary.theta`` the
                predicted weights.

        Returns:
            The loss, or a ``StepOutput`` with what the metrics take.
        """

    def configure_metrics(self) -> Mapping[str, Metric]:
        """The task's metrics by name, measured at each gamma of a grid; none unless overridden.

        Each is updated with the prediction and the target of ``StepOutput``.
        """
        return {}

    def configure_extra_metrics(self, stage: Stage) -> Mapping[str, Metric]:
        """Metrics that are not swept, by the names under which they are logged; none by default.

        Each is updated with a batch and the primaries: a function that gives the primary at each
        of several gamma. A metric that computes a mapping logs each of its values by its key.

        Args:
            stage: ``val`` or ``test``.
        """
        return {}

    def plot_examples(self, batch: Any, gammas: Float[Tensor, "n D"]) -> dict[str, Figure]:
        """Figures of a batch at some gamma, by name; none unless overridden.

        Args:
            batch: What the data loader gives, on this module's device.
            gammas: Values from the prior's grid.
        """
        return {}

    def sample_names(self, batch: Any) -> Sequence[str]:
        """The name of each sample of a batch, by which gamma is chosen and files are named.

        Raises:
            UsageError: If the task, or its data, gives them no names.
        """
        raise UsageError(f"{type(self).__name__}: the samples of this batch have no names")

    @override
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Override it to make predictions; until then a task has none.

        Raises:
            UsageError: Always.
        """
        task = type(self).__name__
        raise UsageError(f"{task} does not say how to predict: override its predict_step")

    def finish_epoch(self) -> None:
        """Look, at the end of a training epoch, at what its steps did not wait for.

        Raises:
            NonFiniteError: If a weight is not finite.
            UsageError: If gamma was outside the prior's support.
        """
        self.check_weights()
        self._seen_outside.check()

    def start_batch(self) -> None:
        """What a task does before each training batch; nothing by default."""

    def forward(self, inputs: Inputs, gamma: Gamma) -> Any:
        """Run the primary with the weights predicted at gamma, as ``HyperModel.forward`` does."""
        return self.model(inputs, gamma)

    def sample_gamma(self, batch: Any, batch_idx: int) -> Float[Tensor, "K D"]:
        """Sample gamma for a training batch, on the CPU; or what ``gamma_source`` tells.

        A function of seed, epoch, batch index and, unless ranks share gamma, rank: so a resumed run
        samples what the undisturbed one would have.
        """
        if self.gamma_source is not None:
            gamma = gamma_of_batch(self.gamma_source, batch, self.model.prior)
            if gamma.device.type == "cpu":
                return self.model.prior.check_values(gamma)
            self._seen_outside.update(gamma, self.model.prior)  # to look would wait for the device
            return gamma
        num_draws = (
            batch_size(batch) if self.draws_per_batch == "one_per_sample" else self.draws_per_batch
        )
        rank = 0 if self.ranks_share_gamma else self.global_rank
        place = [self.gamma_seed, self.current_epoch, batch_idx, rank]
        return sample_of_batch(self.model.prior, num_draws, place)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> STEP_OUTPUT:
        primary = self.model.at(self.sample_gamma(batch, batch_idx), check=False)
        output = self.step_output(batch, primary)
        objective = output.loss
        if self.theta_decay:
            square = sum(real_numbers(t).square().sum() for t in primary.theta.values())
            objective = objective + self.theta_decay / 2 * square / len(primary.gamma)
        size = batch_size(batch)
        # Not with prog_bar=True: Lightning would wait for the values after every batch.
        for name, value in self.model.prior.means(primary.gamma).items():
            self.log(name, value, batch_size=size)
        self.log("train_loss", output.loss, batch_size=size)
        self.latest = TrainingBatch(primary.gamma, output.detached())
        return objective

    @override
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, "val", dataloader_idx)

    @override
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, "test", dataloader_idx)

    def step_output(self, batch: Any, primary: PrimaryAtGamma) -> StepOutput:
        """What the task makes of a batch and the primary at some gamma.

        Args:
            batch: What the data loader gives, on this module's device.
            primary: From ``model.at(gamma)``.
        """
        return StepOutput.of(self.loss(batch, primary))

    def primary_calls(self, batch: Any, gamma: Float[Tensor, "K D"]) -> list[Arguments]:
        """What the task gives the primary for a batch at draws of gamma, in the order of its calls.

        Args:
            batch: What the data loader gives.
            gamma: The draws, which are not checked.
        """
        primary = self.model.at(gamma, check=False)
        calls = primary.record()
        with without_logging(self):
            self.loss(batch, primary)
        return calls

    @property
    def monitored_metric(self) -> str:
        """Name of the metric that ``monitor`` is the mean or the best of."""
        return self.monitor.removeprefix("val_").removesuffix("_best")

    @property
    def required_gamma(self) -> RequestedGamma:
        """The gamma at which ``predict`` was asked to predict.

        Raises:
            UsageError: If none was asked for.
        """
        if self.requested is None:
            raise UsageError(f"{type(self).__name__} predicts at a gamma: give predict --gamma 0.3")
        return self.requested

    def evaluation(self, stage: Stage, loader: int = 0) -> Evaluation:
        """The evaluation of validation (``val``) or of test: its grid, metrics and result.

        Args:
            stage: ``val`` or ``test``.
            loader: Which data loader. The numbers of the first one have plain names; those of
                others end with ``/loader_1``.

        Raises:
            UsageError: If a metric has an impossible name.
        """
        return self._evaluations.of(stage, loader)

    def evaluate_at(self, stage: Stage, gammas: Float[Tensor, "n D"] | None) -> None:
        """Let a stage measure at some gamma; ``None`` for the prior's grid, as by default."""
        self._evaluations.choose(stage, gammas)

    def _make_evaluation(self, stage: Stage, gammas: Float[Tensor, "n D"] | None) -> Evaluation:
        options: dict[str, Any] = {
            "stage": stage,
            "model": self.model,
            "grid": self.model.prior.grid(self._grid_sizes[stage]) if gammas is None else gammas,
            "metrics": self.configure_metrics(),
            "extra_metrics": self.configure_extra_metrics(stage),
            "references": self.references,
        }
        source = self.gamma_source
        if source is None or source.sweeps_grid or gammas is not None:
            return Evaluation(**options)
        return OwnGammaEvaluation(source, **options)

    @override
    def configure_callbacks(self) -> list[Callback]:
        self.brings_own_work = True
        callbacks: Sequence[Any] = getattr(self.trainer, "callbacks", ())
        return [] if any(isinstance(c, OwnWork) for c in callbacks) else [OwnWork()]

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        if self.optimizer_factory is not None:
            return self.optimizer_factory(self)
        rate = 3e-4 if self.learning_rate is None else self.learning_rate
        return FactoredAdam(self.parameter_groups(), lr=rate)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The trained parameters by group, as an optimizer takes them, with their options."""
        return parameter_groups(self.parameters(), self.model, self.group_options)

    def start_stage(self) -> None:
        """Learn the names of labels, and refuse metrics with impossible names, before all else."""
        self.label_names = getattr(self.trainer.datamodule, "label_names", {})  # type: ignore[attr-defined]
        self.evaluation("val")

    def start_training(self) -> None:
        """Refuse options of a group that its optimizer does not have; say how the head is updated.

        Raises:
            UsageError: If there is one.
        """
        for optimizer in self.trainer.optimizers:
            check_options(optimizer, self.group_options)
            if self.learning_rate is not None and self.trainer.global_step == 0:
                restore_rates(optimizer, self.group_options)
        # Ranks that share gamma sample it from one seed, even where each was seeded by itself.
        self.gamma_seed = self.trainer.strategy.broadcast(self.gamma_seed)
        num_draws = None if self.draws_per_batch == "one_per_sample" else self.draws_per_batch
        head = self.model.hypernetwork.head
        rank_zero_info(describe_update(head.factored_weight, num_draws, self.trainer.optimizers))

    def start_evaluation(self, stage: Stage) -> None:
        """Reset all metrics; from now on the weights at each gamma are predicted once."""
        self._evaluations.start(stage, self.device)

    def finish_evaluation(self, stage: Stage) -> None:
        """Compute the results and log them."""
        for ending, result in self._evaluations.finish(stage, self.label_names):
            for name, value in result.scalars().items():
                shown = name == self.monitor and not ending
                # Every rank holds the same number; the reduction only tells Lightning so.
                self.log(f"{name}{ending}", value, shown, sync_dist=True)

    def _evaluate(self, batch: Any, stage: Stage, loader: int) -> None:
        if not has_own_work(self):
            return
        trainer = self.trainer
        loaders = trainer.val_dataloaders if stage == "val" else trainer.test_dataloaders
        of_loader = loaders[loader] if isinstance(loaders, (list, tuple)) else loaders
        evaluations = self._evaluations
        evaluations.update(stage, loader, batch, of_loader, self.device, self.step_output)
