"""The folder of one run: fresh for each fit, in the run of the checkpoint for the rest."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ParallelStrategy

from mip_lightning.errors import UsageError
from mip_lightning.utilities.files import first_free, numbered, replacing

RUNS = "runs"
CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"

SIGNATURE = "slurm.json"
"""By what the fit of a requeued job finds its folder."""

INHERITED = "MIP_LIGHTNING_RUN_DIR"
"""Environment variable by which the processes that Lightning starts learn rank 0's choice."""


def free_config(folder: Path) -> Path:
    """Where the next configuration goes: ``config.yaml``, or ``config_1.yaml`` once resumed."""
    return first_free(folder / "config.yaml")


def latest_config(folder: Path) -> Path | None:
    """The configuration that was last run in a folder; ``None`` where there is none."""
    found = list(takewhile(Path.exists, numbered(folder / "config.yaml")))
    return found[-1] if found else None


def run_of_checkpoint(checkpoint: str | Path) -> Path | None:
    """The run that wrote a checkpoint, ``RUN/checkpoints/NAME.ckpt``; ``None`` if it was moved."""
    folder = Path(checkpoint).parent
    is_run = folder.name == CHECKPOINTS and latest_config(folder.parent) is not None
    return folder.parent if is_run else None


class RunDirectory(NamedTuple):
    """The folder of a run, as a command was given it.

    Attributes:
        folder: Where it keeps its files.
        checkpoint: Where a fit of a requeued job goes on; ``None`` for others.
    """

    folder: Path
    checkpoint: Path | None = None

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return (self.folder / CHECKPOINTS).resolve()

    @property
    def last_checkpoint(self) -> Path:
        """Where a fit can go on."""
        return self.checkpoints / LAST


def claim(subcommand: str, runs: Path, run_dir: str | None, origin: Path | None) -> RunDirectory:
    """Make the folder in which a command keeps its files; one process does, for all ranks.

    ``fit`` takes ``version_<n>`` with the first free n, or under SLURM ``job_<id>``, then
    ``job_<id>_1``, ... A requeued job finds them again, each fit its own, by the command. A ``fit``
    that resumes a run takes the run's folder. The other commands take a folder named after them
    inside the run that wrote the checkpoint (``test``, ``test_1``, ...). A folder that the user
    names is taken as it is.

    Args:
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        runs: The folder of the experiment's runs.
        run_dir: The folder that the user names.
        origin: The run that wrote the checkpoint that is resumed or evaluated.

    Raises:
        UsageError: If the named folder holds another run.
    """
    if inherited := os.environ.get(INHERITED):
        return RunDirectory(Path(inherited))
    job = _Job.current() if subcommand == "fit" else None
    if run_dir is not None or (subcommand == "fit" and origin is not None):
        claimed = _claim_named(Path(run_dir or origin or ""), subcommand, origin, job)
    elif origin is not None:
        claimed = RunDirectory(_make_first_free(origin / subcommand))
    elif job is not None:
        folder = _make_first_free(runs / f"job_{job.id}", is_own=job.began)
        job.sign(folder)
        claimed = RunDirectory(folder, _last(folder))
    else:
        claimed = RunDirectory(_make_first_free(runs / "version", start=0))
    os.environ[INHERITED] = str(claimed.folder)
    return claimed


def is_inherited() -> bool:
    """Whether another process has chosen the folder for this one, or this one has."""
    return INHERITED in os.environ


def claim_for_all_ranks(
    trainer: Trainer, subcommand: str, runs: Path, run_dir: str | None, origin: Path | None
) -> RunDirectory:
    """Let one rank claim the run's folder, and tell all others.

    Where Lightning starts the other ranks, it does so later, and the environment tells them.

    Args:
        trainer: The trainer, which knows the ranks.
        subcommand: As in ``claim``.
        runs: As in ``claim``.
        run_dir: As in ``claim``.
        origin: As in ``claim``.

    Raises:
        UsageError: On all ranks, if the folder holds another run.
    """
    about = (subcommand, runs, run_dir, origin)
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
    claimed: RunDirectory | UsageError | None = None
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


def _claim_named(
    folder: Path, subcommand: str, origin: Path | None, job: "_Job | None"
) -> RunDirectory:
    goes_on = job is not None and job.began(folder)
    resumes = subcommand == "fit" and origin is not None and origin.resolve() == folder.resolve()
    if latest_config(folder) is not None and not goes_on and not resumes:
        last = folder / CHECKPOINTS / LAST
        way_on = f", or go on with that run by fit --ckpt_path {last}" if last.exists() else ""
        raise UsageError(
            f"run_dir={str(folder)!r} holds a run already: name another folder{way_on}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if job is not None:
        job.sign(folder)
    return RunDirectory(folder, _last(folder) if goes_on else None)


def _last(folder: Path) -> Path | None:
    last = folder / CHECKPOINTS / LAST
    return last if last.is_file() else None


@dataclass(frozen=True)
class _Job:
    """A fit of a SLURM job, which leaves in its folder by what it can be known again.

    Attributes:
        id: The job's, one for each task of an array.
        restarts: How often the job was requeued so far.
        command: The arguments of the command: a job may run several.
    """

    id: int
    restarts: int
    command: list[str]

    @classmethod
    def current(cls) -> "_Job | None":
        """That of this process; ``None`` outside of jobs and in interactive ones."""
        job = SLURMEnvironment.job_id()
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        return None if job is None else cls(job, restarts, sys.argv[1:])

    def sign(self, folder: Path) -> None:
        """Say in a folder that this fit has it."""
        with replacing(folder / SIGNATURE) as unfinished:
            unfinished.write_text(json.dumps(asdict(self)))

    def began(self, folder: Path) -> bool:
        """Whether this very fit had the folder before the job was requeued.

        A second fit of the same command in one job is told from the first by its turn: one that
        was signed since the job started again is taken.
        """
        try:
            signed = _Job(**json.loads((folder / SIGNATURE).read_text()))
        except (OSError, ValueError, TypeError):
            return False
        known = (signed.id, signed.command) == (self.id, self.command)
        return known and signed.restarts < self.restarts


def release() -> None:
    """Forget the folder, once the command is done: the next one in this process takes its own."""
    os.environ.pop(INHERITED, None)


def _make_first_free(
    path: Path, start: int | None = None, is_own: Callable[[Path], bool] = lambda folder: False
) -> Path:
    """Make the first folder of ``numbered`` that is not there.

    Args:
        path: The first.
        start: The first number.
        is_own: Whether one that is there may be taken.
    """
    for folder in numbered(path, start):
        try:
            folder.mkdir(parents=True)  # it settles a race of two runs
        except FileExistsError:
            if not is_own(folder):
                continue
        break
    return folder
