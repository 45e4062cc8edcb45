"""Files of plain values that PyTorch writes: whole or not at all, and read only if unchanged."""

import lzma
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, TypeAlias

import torch

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
"""What ``zipfile`` raises at an archive of which bytes have changed."""


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


def save_whole(content: Any, path: Path) -> None:
    """``torch.save`` to a file that is there whole, or as it was before.

    What is unfinished lies beside it, on the same file system, so that it can take the file's place
    in one step once it is on the disk.

    Args:
        content: What to save.
        path: The file, replaced if it is there.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
