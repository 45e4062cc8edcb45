"""The command line: ``mip-lightning fit | validate | test | predict | ...``, by LightningCLI."""

import signal
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, ReduceLROnPlateau
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

# A configuration names classes by short names (``class_path: LeNet``) once they are imported.
import mip_lightning.callbacks
import mip_lightning.data
import mip_lightning.hypernetworks
import mip_lightning.networks
import mip_lightning.priors
import mip_lightning.tasks  # noqa: F401
from mip_lightning.callbacks import (
    BestCheckpoint,
    PredictionWriter,
    StopOnSignal,
    StoppedBySignal,
)
from mip_lightning.cli._checkpoint_argument import check_checkpoint, config_of_checkpoint
from mip_lightning.cli._default_callbacks import default_callbacks, default_loggers
from mip_lightning.cli._parser import OneLineParser, one_line, usage_error
from mip_lightning.cli._place import check_config_files
from mip_lightning.cli._run_directory import (
    RUNS,
    claim_for_all_ranks,
    is_inherited,
    release,
    run_of_checkpoint,
)
from mip_lightning.cli._save_run_config import SaveRunConfig
from mip_lightning.cli._schedule import ScheduleConfig, make_optimizer
from mip_lightning.cli._start_checks import check_callbacks
from mip_lightning.core.module import HyperLightningModule
from mip_lightning.errors import UsageError
from mip_lightning.trainer.trainer import HyperTrainer

BEST = "best"
ON_ONE_RANK = ("export", "select-gamma")
"""Commands that one process runs, where a cluster starts several: the others would write the same
files."""

NEEDS_CHECKPOINT = ("validate", "test", "predict", "export", "select-gamma")

EXPECTED_WARNINGS = (
    # Evaluation saves no checkpoints, so it needs no checkpoint callback.
    r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
    # A run that is resumed in its own folder finds its checkpoints there.
    r"Checkpoint directory .* exists and is not empty",
    # A run that starts from another run's checkpoint has a best one of its own.
    r"The dirpath has changed from",
    # The samples that ranks repeat in evaluation are left out (core/_evaluated_samples.py).
    r"Using `DistributedSampler` with the dataloaders. During",
    # `main(args)` takes its arguments only, whatever the process, a notebook's, was called with.
    r"LightningCLI's args parameter is intended to run from within Python",
    # Lightning 2.6 calls what torch 2.15 deprecates.
    r".*isinstance\(treespec, LeafSpec\)",
)
"""Warnings that tell the user of this command line nothing, each with its reason."""


class MipLightningCLI(LightningCLI):
    """LightningCLI in subclass mode, with a run directory that nothing overwrites."""

    def __init__(self, args: Sequence[str] | None) -> None:
        given = sys.argv[1:] if args is None else list(args)
        check_config_files(given)
        OneLineParser.given = given
        self._goes_on_from: Path | None = None
        super().__init__(
            HyperLightningModule,
            LightningDataModule,
            save_config_callback=SaveRunConfig,
            trainer_class=HyperTrainer,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            parser_kwargs=_parser_kwargs(given),
            parser_class=OneLineParser,
            auto_configure_optimizers=False,  # the model's own method makes what is named
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=None if args is None else given,
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
            help="The run goes to runs/RUN_NAME/version_N in trainer.default_root_dir.",
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
        parser.add_optimizer_args((Optimizer,))
        parser.add_lr_scheduler_args((LRScheduler, ReduceLROnPlateau))
        parser.add_class_arguments(ScheduleConfig, "schedule")

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
            check_checkpoint(Path(options.ckpt_path))
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
            self.model.optimizer_factory = partial(
                make_optimizer,
                optimizer_init=options.optimizer.as_dict(),
                scheduler_init=options.lr_scheduler.as_dict() if options.lr_scheduler else None,
                schedule=options.schedule,
            )

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        options = self.config_init[self.subcommand]
        given = options.trainer
        trial = bool(given.fast_dev_run)
        chosen = given.callbacks or []
        callbacks = [chosen] if isinstance(chosen, Callback) else list(chosen)
        callbacks += default_callbacks(str(self.subcommand), options, callbacks)
        stop = StopOnSignal(None)
        if self.subcommand == "fit":
            callbacks.append(stop)
        if any(isinstance(callback, ModelSummary) for callback in callbacks):
            kwargs["enable_model_summary"] = False  # else Lightning says that there is one
        if trial or self.subcommand != "fit":
            kwargs["enable_checkpointing"] = False
        own_loggers = given.logger in (None, True) and not trial
        if own_loggers:
            kwargs["logger"] = False  # until the folder is known
        check_callbacks(callbacks, options.model)
        try:
            trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except (ValueError, ModuleNotFoundError) as error:
            # Of the trainer alone, for its parts are made already.
            raise UsageError(f"trainer: {error}") from error
        if trial:
            return trainer
        assert isinstance(trainer, HyperTrainer)
        origin = run_of_checkpoint(options.ckpt_path) if options.ckpt_path else None
        run = claim_for_all_ranks(
            trainer,
            str(self.subcommand),
            Path(given.default_root_dir or "") / RUNS / options.run_name,
            options.run_dir,
            origin,
        )
        trainer.run_dir = run.folder
        self._goes_on_from = run.checkpoint
        if own_loggers:
            trainer.loggers = default_loggers(run.folder)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ModelCheckpoint):
                callback.dirpath = callback.dirpath or str(run.checkpoints)
        if given.enable_checkpointing is not False:
            stop.path = run.last_checkpoint
        return trainer

    def before_fit(self) -> None:
        """Let a requeued job go on from where it was; Lightning calls this before ``fit``."""
        if self._goes_on_from is not None:
            self.config_init.fit.ckpt_path = str(self._goes_on_from)


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
    except (ValueError, TypeError, MisconfigurationException) as error:
        usage = usage_error(error)
        if usage is None:
            raise
        sys.exit(f"mip-lightning: error: {one_line(str(usage))}")
    finally:
        release()


def _leave_process_group() -> None:
    """Part from the other ranks; Lightning does so for NCCL only.

    A rank that exits with gloo's threads running aborts now and then, and takes the others along
    (seen in 4 of 28 runs under torchrun, torch 2.15).
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _parser_kwargs(args: Sequence[str]) -> dict[str, Any]:
    """The parsers' arguments: what the command line leaves to the run whose checkpoint it names."""
    kwargs: dict[str, Any] = {
        "version": version("mip-lightning"),
        "description": "Train hypernetworks with Magnitude Invariant Parametrizations (MIP).",
    }
    subcommand = next((arg for arg in args if arg in MipLightningCLI.subcommands()), None)
    config = config_of_checkpoint(args)
    if subcommand is not None and config is not None:
        kwargs[subcommand] = {"default_config_files": [str(config)]}
    return kwargs
