"""HoldMemory: memory that a training step frees stays with the process, for the next step."""

import ctypes
import sys

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

# malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
NEVER = 2**31 - 1


class HoldMemory(Callback):
    """Makes training on a CPU faster, by as much memory as a step takes at its peak.

    Tensors of megabytes are otherwise given back to the operating system and taken again in every
    step, page by page, which for the activations of a convolutional network takes up to half of
    the time (docs/performance.md). It sets two options of the C library's ``malloc``, for the whole
    process and until its end: no allocation is a mapping of its own, and what is free is kept.

    It does so with glibc, that is on Linux; elsewhere it says that it does nothing.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not hold_memory():
            rank_zero_info("HoldMemory does nothing: this system's C library is not glibc")


def hold_memory() -> bool:
    """Set the options.

    Returns:
        Whether the C library has them.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, NEVER))
