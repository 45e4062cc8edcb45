"""The command line: ``mip-lightning fit | validate | test | predict | ...``, by LightningCLI."""

import argparse
import difflib
import signal
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary, ProgressBar
from lightning.pytorch.cli import (
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
    instantiate_class,
)
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from typing_extensions import override

from mip_lightning.callbacks import (
    BestCheckpoint,
    GammaCurve,
    HyperModelSummary,
    LastCheckpoint,
    NiftiWriter,
    PredictionWriter,
    RunProgressBar,
    StopOnSignal,
    StoppedBySignal,
)
from mip_lightning.cli._parser import OneLineParser, one_line, usage_error
from mip_lightning.cli._run_directory import (
    CHECKPOINTS,
    LAST,
    Claim,
    claim,
    free_config,
    is_inherited,
    latest_config,
    release,
    run_of_checkpoint,
)
from mip_lightning.core.module import HyperLightningModule
from mip_lightning.errors import UsageError
from mip_lightning.optim.optimizers import FACTORED
from mip_lightning.trainer.trainer import HyperTrainer
from mip_lightning.utilities.files import load_plain

BEST = "best"
ON_ONE_RANK = ("export", "select-gamma")
"""Commands that one process runs, where a cluster starts several: the others would write the same
files."""

NEEDS_CHECKPOINT = ("validate", "test", "predict", "export", "select-gamma")

EXPECTED_WARNINGS = (
    # The module's own Adam is there to be replaced by the optimizer that is named.
    r".*configure_optimizers` will be overridden by",
    # Evaluation saves no checkpoints, so it needs no checkpoint callback.
    r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
    # A run that is resumed in its own folder finds its checkpoints there.
    r"Checkpoint directory .* exists and is not empty",
    # A run that starts from another run's checkpoint has a best one of its own.
    r"The dirpath has changed from",
    # The samples that ranks repeat in evaluation are left out (core/_evaluated_samples.py).
    r"Using `DistributedSampler` with the dataloaders. During",
    # Lightning 2.6 calls what torch 2.15 deprecates.
    r".*isinstance\(treespec, LeafSpec\)",
)
"""Warnings that tell the user of this command line nothing, each with its reason."""


class SaveRunConfig(SaveConfigCallback):
    """Saves the parsed configuration to the run's folder, under a new name in a resumed run.

    When the work starts, not before: by then the checkpoint, if there is one, was taken up. A
    command that is refused must not leave its configuration to the run that it names.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pass  # not yet: a command that is refused must leave nothing

    @override
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().setup(trainer, pl_module, "fit")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().setup(trainer, pl_module, "fit")

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().setup(trainer, pl_module, "validate")

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().setup(trainer, pl_module, "test")

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().setup(trainer, pl_module, "predict")

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        config = self.config.clone()
        config.run_dir = None  # names this run, not one that starts from its configuration
        path = free_config(Path(trainer.default_root_dir))
        self.parser.save(config, path, skip_none=False)


class MipLightningCLI(LightningCLI):
    """LightningCLI in subclass mode, with a run directory that nothing overwrites."""

    def __init__(self, args: Sequence[str] | None) -> None:
        given = sys.argv[1:] if args is None else list(args)
        parser_kwargs = _defaults(given)
        super().__init__(
            HyperLightningModule,
            LightningDataModule,
            save_config_callback=SaveRunConfig,
            trainer_class=HyperTrainer,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            parser_kwargs=parser_kwargs,
            parser_class=OneLineParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=None if args is None else list(args),
        )

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        ours = {name: {"model", "datamodule"} for name in ("export", "select-gamma")}
        return {**LightningCLI.subcommands(), **ours}

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_name",
            type=str,
            default="default",
            help="The run goes to runs/RUN_NAME/version_N.",
        )
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Folder of the run, instead of runs/RUN_NAME/version_N (fit) or a folder in the"
            " run that wrote the checkpoint (validate, test, predict).",
        )
        parser.add_class_arguments(BestCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.filename": BEST,
                "checkpoint.enable_version_counter": False,
            }
        )
        parser.link_arguments(
            "model", "checkpoint.monitor", lambda model: model.monitor, apply_on="instantiate"
        )
        parser.link_arguments(
            "model", "checkpoint.mode", lambda model: model.mode, apply_on="instantiate"
        )
        parser.add_class_arguments(PredictionWriter, "predictions")

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        options = self.config[self.config.subcommand]
        self._model_options = options.model.clone()
        if options.ckpt_path is None and self.config.subcommand in NEEDS_CHECKPOINT:
            raise UsageError(
                f"{self.config.subcommand} needs trained weights: give --ckpt_path"
                " runs/NAME/VERSION/checkpoints/best.ckpt"
            )
        if options.ckpt_path is not None:
            _check_checkpoint(Path(options.ckpt_path))
        if self.config.subcommand in ON_ONE_RANK and getattr(rank_zero_only, "rank", 0) != 0:
            sys.exit()
        if options.checkpoint.save_top_k not in (0, 1) and options.checkpoint.filename == BEST:
            raise UsageError(
                f"checkpoint.save_top_k={options.checkpoint.save_top_k}: give names that tell the"
                " checkpoints apart, such as --checkpoint.filename '{epoch}'"
            )

    @override
    def before_instantiate_classes(self) -> None:
        """Let what the user says of the model win over what the checkpoint says.

        Lightning would ignore in silence a model that differs from the checkpoint's. So the
        checkpoint of another primary is refused, and ``--model.ensemble_size`` has its effect.
        """
        options = self.config[self.subcommand]
        options.model = self._model_options
        if options.ckpt_path is not None and options.model.init_args.theta is not None:
            options.model.init_args.theta.pretrained = None  # the checkpoint has all weights

    @override
    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        options = self.config_init[self.subcommand]
        if options.get("optimizer"):
            self.model.configure_optimizers = partial(
                _configure_optimizers,
                self.model,
                options.optimizer.as_dict(),
                options.lr_scheduler.as_dict() if options.get("lr_scheduler") else None,
            )

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        options = self.config_init[self.subcommand]
        trial = bool(options["trainer"]["fast_dev_run"])
        callbacks = self._callbacks(options)
        stop = StopOnSignal(None)
        if self.subcommand == "fit":
            callbacks.append(stop)
        if trial or self.subcommand != "fit":
            kwargs["enable_checkpointing"] = False
        own_loggers = options["trainer"]["logger"] in (None, True) and not trial
        if own_loggers:
            kwargs["logger"] = False  # until the folder is known
        trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs)
        if trial:
            return trainer
        assert isinstance(trainer, HyperTrainer)
        claimed = _claim_for_all_ranks(trainer, str(self.subcommand), options)
        trainer.run_dir = claimed.folder
        if claimed.checkpoint is not None:
            options["ckpt_path"] = str(claimed.checkpoint)
        if own_loggers:
            trainer.loggers = _loggers(claimed.folder)
        checkpoints = (claimed.folder / CHECKPOINTS).resolve()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ModelCheckpoint):
                callback.dirpath = callback.dirpath or str(checkpoints)
        if options["trainer"]["enable_checkpointing"] is not False:
            stop.path = checkpoints / LAST
        return trainer

    def _callbacks(self, options: Namespace) -> list[Callback]:
        """The user's callbacks and what every run has, unless the user has one of its kind."""
        chosen = options["trainer"]["callbacks"] or []
        callbacks: list[Callback] = [chosen] if isinstance(chosen, Callback) else list(chosen)

        def lacks(kind: type[Callback]) -> bool:
            return not any(isinstance(callback, kind) for callback in callbacks)

        if lacks(GammaCurve):
            callbacks.append(GammaCurve())
        if lacks(ModelSummary) and options["trainer"]["enable_model_summary"] is not False:
            callbacks.append(HyperModelSummary())
            options["trainer"]["enable_model_summary"] = False  # else Lightning says it has one
        if lacks(ProgressBar) and options["trainer"]["enable_progress_bar"] is not False:
            callbacks.append(RunProgressBar())
        wanted = options["trainer"]["enable_checkpointing"] is not False
        trial = bool(options["trainer"]["fast_dev_run"])
        if self.subcommand == "fit" and wanted and not trial and lacks(ModelCheckpoint):
            validated = options["trainer"]["limit_val_batches"] != 0  # else there is no best
            callbacks += [*([options["checkpoint"]] if validated else []), LastCheckpoint()]
        if self.subcommand == "predict":
            volumes = options["model"].predicts_volumes
            callbacks.append(NiftiWriter() if volumes else options["predictions"])
        return callbacks


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Exit status: 0 when done, 1 for a failure, 2 for arguments that cannot be parsed, 143 and 130
    where SIGTERM or Ctrl-C ended it.

    Args:
        args: The arguments; by default those of the process.
    """
    if args is None:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does: classes of the user's own
    was_started_by_lightning = is_inherited()
    try:
        with warnings.catch_warnings():
            for message in EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message)
            MipLightningCLI(args)
        _leave_process_group()
    except StoppedBySignal:
        # Lightning, which started this process, would kill the one that has started it.
        if was_started_by_lightning and getattr(rank_zero_only, "rank", 0) != 0:
            sys.exit(0)
        raise
    except SIGTERMException:
        sys.exit(128 + signal.SIGTERM)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning's own answer to it
            sys.exit(128 + signal.SIGINT)
        raise
    except (ValueError, TypeError) as error:
        usage = usage_error(error)
        if usage is None:
            raise
        sys.exit(f"mip-lightning: error: {one_line(str(usage))}")
    finally:
        release()


def _claim_for_all_ranks(trainer: Trainer, subcommand: str, options: Namespace) -> Claim:
    """Let one rank claim the run's folder, and tell all others.

    Where Lightning starts the other ranks, it does so later, and the environment tells them.

    Raises:
        UsageError: On all ranks, if the folder holds another run.
    """
    origin = run_of_checkpoint(options["ckpt_path"]) if options["ckpt_path"] else None
    about = (subcommand, options["run_name"], options["run_dir"], origin)
    strategy = trainer.strategy
    if (
        trainer.world_size == 1
        or is_inherited()
        or not isinstance(strategy, ParallelStrategy)
        or strategy.cluster_environment is None
        or not strategy.cluster_environment.creates_processes_externally
    ):
        return claim(*about)
    strategy.setup_environment()  # ranks can talk from here on; Lightning's call finds it done
    claimed: Claim | UsageError | None = None
    if trainer.is_global_zero:
        try:
            claimed = claim(*about)
        except UsageError as error:
            claimed = error
    claimed = strategy.broadcast(claimed)
    if isinstance(claimed, UsageError):
        raise claimed
    assert claimed is not None
    return claimed


def _leave_process_group() -> None:
    """Part from the other ranks; Lightning does so for NCCL only.

    A rank that exits with gloo's threads running aborts now and then, and takes the others along
    (seen in 4 of 28 runs under torchrun, torch 2.15).
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _configure_optimizers(
    model: HyperLightningModule,
    optimizer_init: dict[str, Any],
    scheduler_init: dict[str, Any] | None,
) -> OptimizerLRScheduler:
    optimizer = instantiate_class(model.parameter_groups(), optimizer_init)
    factored = FACTORED.get(type(optimizer))
    if factored is not None:
        optimizer = factored(model.parameter_groups(), **optimizer_init.get("init_args", {}))
    scheduler = instantiate_class(optimizer, scheduler_init) if scheduler_init else None
    configured: OptimizerLRScheduler = LightningCLI.configure_optimizers(
        model, optimizer, scheduler
    )
    return configured


def _defaults(args: Sequence[str]) -> dict[str, Any]:
    """The parsers' arguments: what the arguments leave to the run whose checkpoint they name.

    A command with ``--ckpt_path`` and without ``--config`` takes the run's own configuration.

    Raises:
        UsageError: If there is no such checkpoint; without it, other arguments would be missed.
    """
    kwargs: dict[str, Any] = {
        "version": version("mip-lightning"),
        "description": "Train hypernetworks with Magnitude Invariant Parametrizations (MIP).",
    }
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("subcommand", nargs="?")
    options.add_argument("--config", "-c")
    options.add_argument("--ckpt_path")
    given, _ = options.parse_known_args(args)
    if given.ckpt_path in (None, "null"):
        return kwargs
    _check_there(Path(given.ckpt_path))
    run = run_of_checkpoint(given.ckpt_path)
    if run is not None and not given.config:
        kwargs[given.subcommand] = {"default_config_files": [str(latest_config(run))]}
    return kwargs


def _check_there(path: Path) -> None:
    if path.is_file():
        return
    places = [*path.parent.glob("*.ckpt"), *path.glob("*.ckpt"), *path.glob("checkpoints/*.ckpt")]
    places += Path("runs").glob("*/*/checkpoints/*.ckpt")
    near = difflib.get_close_matches(str(path), map(str, places), n=2, cutoff=0.0)
    hint = f"; near it are {' and '.join(near)}" if near else ""
    raise UsageError(f"ckpt_path={str(path)!r}: there is no such file{hint}")


def _check_checkpoint(path: Path) -> None:
    """Refuse what is not a checkpoint, before Lightning reads it."""
    _check_there(path)
    content = load_plain(path, "ckpt_path")
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UsageError(f"ckpt_path={str(path)!r} is not a checkpoint: it has no state_dict")


def _loggers(folder: Path) -> list[Logger]:
    """TensorBoard in the run's folder, and ``metrics.csv`` in ``csv/`` (``csv_1`` once resumed)."""
    number, name = 0, "csv"
    while (folder / name).exists():
        number += 1
        name = f"csv_{number}"
    return [
        TensorBoardLogger(folder, name="", version=""),
        CSVLogger(folder, name="", version=name),
    ]
