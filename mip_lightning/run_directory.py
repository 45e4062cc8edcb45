"""The folder of one run: a fresh one for each fit, and one beside the checkpoint for the rest."""

import os
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from mip_lightning.errors import UsageError

ROOT = Path("runs")
CHECKPOINTS = "checkpoints"

INHERITED = "MIP_LIGHTNING_RUN_DIR"
"""Environment variable by which the processes that Lightning starts learn rank 0's choice."""


def free_config(folder: Path) -> Path:
    """Where the next configuration goes: ``config.yaml``, or ``config_1.yaml`` once resumed."""
    return _configs(folder)[-1]


def latest_config(folder: Path) -> Path | None:
    """The configuration that was last run in a folder; ``None`` where there is none."""
    found = _configs(folder)[:-1]
    return found[-1] if found else None


def run_of_checkpoint(checkpoint: str | Path) -> Path | None:
    """The run that wrote a checkpoint, ``RUN/checkpoints/NAME.ckpt``; ``None`` if it was moved."""
    folder = Path(checkpoint).parent
    is_run = folder.name == CHECKPOINTS and latest_config(folder.parent) is not None
    return folder.parent if is_run else None


def claim(subcommand: str, name: str, run_dir: str | None, origin: Path | None) -> Path | None:
    """Make the folder in which a command keeps its files.

    ``fit`` takes ``runs/<name>/version_<n>`` with the first free n, or under SLURM
    ``runs/<name>/job_<id>``, which the job finds again when it is requeued. The other commands
    take a folder named after them inside the run that wrote the checkpoint (``test``, ``test_1``,
    ...). A folder that the user names is taken as it is.

    Args:
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        name: Name of the experiment.
        run_dir: The folder that the user names.
        origin: The run that wrote the checkpoint that is resumed or evaluated.

    Returns:
        The folder; ``None`` on the ranks that did not choose it, which write no files.

    Raises:
        UsageError: If the named folder holds another run.
    """
    if inherited := os.environ.get(INHERITED):
        return Path(inherited)
    if getattr(rank_zero_only, "rank", 0) != 0:
        return None
    job = os.environ.get("SLURM_JOB_ID")
    requeued = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
    if run_dir is not None:
        folder = Path(run_dir)
        resumes = origin is not None and origin.resolve() == folder.resolve()
        goes_on = subcommand == "fit" and (resumes or requeued)
        if latest_config(folder) is not None and not goes_on:
            last = folder / CHECKPOINTS / "last.ckpt"
            way_on = f", or go on with that run by fit --ckpt_path {last}" if last.exists() else ""
            raise UsageError(
                f"run_dir={run_dir!r} holds a run already: name another folder{way_on}"
            )
        folder.mkdir(parents=True, exist_ok=True)
    elif subcommand != "fit" and origin is not None:
        folder = _first_free(origin, subcommand)
    elif job is not None and requeued:
        folder = ROOT / name / f"job_{job}"
        folder.mkdir(parents=True, exist_ok=True)
    elif job is not None:
        folder = _first_free(ROOT / name, f"job_{job}")
    else:
        folder = _first_free(ROOT / name, "version", start=0)
    os.environ[INHERITED] = str(folder)
    return folder


def release() -> None:
    """Forget the folder, once the command is done: the next one in this process takes its own."""
    os.environ.pop(INHERITED, None)


def _configs(folder: Path) -> list[Path]:
    """``config.yaml``, ``config_1.yaml``, ... as far as they are there, and the next free one."""
    paths = [folder / "config.yaml"]
    while paths[-1].exists():
        paths.append(folder / f"config_{len(paths)}.yaml")
    return paths


def _first_free(parent: Path, name: str, start: int | None = None) -> Path:
    """Make the first of ``name`` (without ``start``), ``name_1``, ... that is not there."""
    number = start
    while True:
        folder = parent / (name if number is None else f"{name}_{number}")
        try:
            folder.mkdir(parents=True)  # it settles a race of two runs
        except FileExistsError:
            number = 1 if number is None else number + 1
        else:
            return folder
