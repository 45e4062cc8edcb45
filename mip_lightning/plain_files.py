"""Reading files that PyTorch wrote, of plain values only, whoever made them."""

import pickle
import struct
from pathlib import Path
from typing import Any

import torch

from mip_lightning.errors import UsageError

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


def load_plain(path: str | Path, argument: str) -> Any:
    """What a file of ``torch.save`` holds, on the CPU.

    Args:
        path: The file.
        argument: The argument that named it, for the message.

    Raises:
        UsageError: If there is no such file, or it does not hold plain values.
    """
    if not Path(path).is_file():
        raise UsageError(f"{argument}={str(path)!r}: there is no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except NOT_PLAIN as error:
        raise UsageError(
            f"{argument}={str(path)!r} is no file of plain values that torch.save wrote"
        ) from error
