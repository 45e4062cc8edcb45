"""The argument ``--ckpt_path``: the checkpoint it names, and the run that wrote it."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from mip_lightning.cli._run_directory import latest_config, run_of_checkpoint
from mip_lightning.errors import UsageError
from mip_lightning.utilities.files import load_plain


def config_of_checkpoint(args: Sequence[str]) -> Path | None:
    """The configuration of the run whose checkpoint the arguments name.

    ``None`` where they name no checkpoint or a ``--config`` of their own, or the checkpoint is not
    in its run any more.

    Args:
        args: The arguments of a subcommand.

    Raises:
        UsageError: If there is no such checkpoint; without it, other arguments would be missed.
    """
    ckpt_path = _value_of(args, "--ckpt_path")
    if ckpt_path in (None, "null"):
        return None
    assert ckpt_path is not None
    _check_there(Path(ckpt_path))
    run = run_of_checkpoint(ckpt_path)
    if run is None or _value_of(args, "--config") or _value_of(args, "-c"):
        return None
    return latest_config(run)


def check_checkpoint(path: Path) -> None:
    """Refuse what is not a checkpoint, before Lightning reads it.

    Raises:
        UsageError: If it is not one.
    """
    _check_there(path)
    content = load_plain(path, "ckpt_path")
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UsageError(f"ckpt_path={str(path)!r} is not a checkpoint: it has no state_dict")


def _value_of(args: Sequence[str], option: str) -> str | None:
    """The value of an option as ``--option value`` or ``--option=value``; the last one counts."""
    value = None
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        if arg == option:
            value = following
        elif arg.startswith(f"{option}="):
            value = arg.removeprefix(f"{option}=")
    return value


def _check_there(path: Path) -> None:
    if path.is_file():
        return
    places = [*path.parent.glob("*.ckpt"), *path.glob("*.ckpt"), *path.glob("checkpoints/*.ckpt")]
    places += Path("runs").glob("*/*/checkpoints/*.ckpt")
    near = difflib.get_close_matches(str(path), map(str, places), n=2, cutoff=0.0)
    hint = f"; near it are {' and '.join(near)}" if near else ""
    raise UsageError(f"ckpt_path={str(path)!r}: there is no such file{hint}")
