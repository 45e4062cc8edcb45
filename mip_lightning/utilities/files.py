"""Files: written whole or not at all, never over another; checkpoints read only if unchanged."""

import lzma
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import torch
import yaml

from mip_lightning.errors import UsageError

Value: TypeAlias = str | int | float
"""A cell of a table."""

NOT_PLAIN = (
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)
"""What PyTorch raises at a file that it did not write, or that holds more than plain values."""

ARCHIVE = b"PK\x03\x04"
"""How an archive of ``torch.save`` begins; files of PyTorch before 1.6 have no checksums."""

DAMAGED = (
    zipfile.BadZipFile,
    NotImplementedError,  # an unknown compression
    RuntimeError,  # an encryption
    EOFError,
    OSError,
    ValueError,
    LookupError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)
"""What ``zipfile`` raises at an archive whose bytes have changed."""


def load_plain(path: str | Path, argument: str) -> Any:
    """What a file of ``torch.save`` holds, on the CPU.

    Args:
        path: The file.
        argument: The argument that named it, for the message.

    Raises:
        UsageError: If there is no such file, bytes of it have changed since it was written, or it
            does not hold plain values.
    """
    if not Path(path).is_file():
        raise UsageError(f"{argument}={str(path)!r}: there is no such file")
    check_unchanged(path, argument)
    try:
        is_archive = _is_archive(path)  # only such a one can be mapped into memory
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except NOT_PLAIN as error:
        raise UsageError(
            f"{argument}={str(path)!r} is not a file of plain values that torch.save wrote"
        ) from error


def check_unchanged(path: str | Path, argument: str) -> None:
    """Compare the checksum of each entry of an archive, which ``torch.load`` does not.

    Args:
        path: The file; one that is not an archive passes.
        argument: The argument that named it, for the message.

    Raises:
        UsageError: If a checksum does not match.
    """
    if not _is_archive(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.testzip()
    except DAMAGED as error:
        entry = str(error)
    if entry is not None:
        raise UsageError(
            f"{argument}={str(path)!r} is damaged: bytes of it have changed since it was written"
            f" ({entry}); take another file"
        )


def _is_archive(path: str | Path) -> bool:
    with Path(path).open("rb") as file:
        return file.read(len(ARCHIVE)) == ARCHIVE


def load_yaml(path: Path, argument: str = "") -> Any:
    """What a YAML file holds, which may begin with a byte-order mark.

    Args:
        path: The file.
        argument: Name of the argument that named it, for the message; empty for none.

    Raises:
        UsageError: If it cannot be read, or is not YAML in UTF-8.
    """
    where = f"{argument}={str(path)!r}" if argument else str(path)
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not text in UTF-8 ({error}): save it so") from error
    except yaml.YAMLError as error:
        text = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise UsageError(f"{where} is not YAML: {text}") from error
    except OSError as error:
        raise UsageError(f"{where} cannot be read ({error})") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file that is there whole, or as it was before.

    The unfinished file lies in the same folder, on the same file system, so that it can take the
    file's place in one step once it is on the disk. Where an error is raised, the file stays as it
    was.

    Args:
        path: The file, replaced if it is there; its folder is made if it is not.

    Yields:
        The path to write to, with the same suffix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"unfinished_{path.name}")
    try:
        yield unfinished
        _flush(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # elsewhere a folder cannot be opened
        _flush(path.parent, os.O_DIRECTORY)


def _flush(path: Path, flags: int = 0) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def numbered(path: Path, start: int | None = None) -> Iterator[Path]:
    """``name.csv``, ``name_1.csv``, ``name_2.csv``, ...

    Args:
        path: The first.
        start: The first number; ``None`` for the name as it is, then 1.
    """
    if start is None:
        yield path
    for number in count(1 if start is None else start):
        yield path.with_name(f"{path.stem}_{number}{path.suffix}")


def first_free(path: Path) -> Path:
    """The first of ``numbered`` that is not there."""
    return next(candidate for candidate in numbered(path) if not candidate.exists())
