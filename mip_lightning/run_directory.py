"""The folder of one run: a fresh one for each fit, and one beside the checkpoint for the rest."""

import os
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from mip_lightning.errors import UsageError

ROOT = Path("runs")
CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"

INHERITED = "MIP_LIGHTNING_RUN_DIR"
"""Environment variable by which the processes that Lightning starts learn rank 0's choice."""


def run_of_checkpoint(checkpoint: str | Path) -> Path | None:
    """The run that wrote a checkpoint, ``RUN/checkpoints/NAME.ckpt``; ``None`` if it was moved."""
    folder = Path(checkpoint).parent
    is_run = folder.name == CHECKPOINTS and (folder.parent / CONFIG).is_file()
    return folder.parent if is_run else None


def claim(subcommand: str, name: str, run_dir: str | None, checkpoint: str | None) -> Path | None:
    """Make the folder in which a command keeps its files.

    ``fit`` takes ``runs/<name>/version_<n>`` with the first free n. The other commands take a
    folder named after them inside the run that wrote the checkpoint (``test``, ``test_1``, ...).
    A folder that the user names is taken as it is.

    Args:
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        name: Name of the experiment.
        run_dir: The folder that the user names.
        checkpoint: The checkpoint that is resumed or evaluated.

    Returns:
        The folder; ``None`` on the ranks that did not choose it, which write no files.

    Raises:
        UsageError: If the named folder holds another run.
    """
    if inherited := os.environ.get(INHERITED):
        return Path(inherited)
    if getattr(rank_zero_only, "rank", 0) != 0:
        return None
    origin = run_of_checkpoint(checkpoint) if checkpoint else None
    if run_dir is not None:
        folder = Path(run_dir)
        resumes = origin is not None and origin.resolve() == folder.resolve()
        if (folder / CONFIG).exists() and not (subcommand == "fit" and resumes):
            raise UsageError(
                f"run_dir={run_dir!r} holds a run already: name another folder, or go on with that"
                f" run by fit --ckpt_path {folder / CHECKPOINTS / 'last.ckpt'}"
            )
        folder.mkdir(parents=True, exist_ok=True)
    elif subcommand == "fit" or origin is None:
        folder = _first_free(ROOT / name / "version_0", start=1, join="version_{}")
    else:
        folder = _first_free(origin / subcommand, start=1, join=subcommand + "_{}")
    os.environ[INHERITED] = str(folder)
    return folder


def _first_free(folder: Path, start: int, join: str) -> Path:
    """Make the folder, or the first numbered one; ``mkdir`` settles a race of two runs."""
    number = start
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            folder = folder.with_name(join.format(number))
            number += 1
        else:
            return folder
