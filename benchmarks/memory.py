"""Peak memory, each measurement in a process of its own; and how much there is."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

MEGABYTE = 1e6


def with_peak(function: Callable[..., Result], *args: Any) -> tuple[Result, float | None]:
    """Call a function in a new process, and see how much memory it takes at its peak.

    On a GPU that is the peak of what torch has allocated. On a CPU it is the peak of the process's
    resident size without what it was before the call, as Linux tells it; ``None`` elsewhere.

    Args:
        function: A function of a module, which can be found by its name.
        args: Its arguments, which can be pickled.

    Returns:
        What the function returns, and the peak in units of 10^6 bytes.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure, function, args).result()


def available() -> float:
    """Free memory of the device that is used, in bytes; infinite where nothing tells it."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    kilobytes = _field(Path("/proc/meminfo"), "MemAvailable")
    return float("inf") if kilobytes is None else kilobytes * 1024


def _measure(function: Callable[..., Result], args: tuple[Any, ...]) -> tuple[Result, float | None]:
    if torch.cuda.is_available():
        result = function(*args)
        return result, torch.cuda.max_memory_allocated() / MEGABYTE
    torch.ones(64, 64) @ torch.ones(64, 64)  # the first product starts threads and libraries
    before = _field(Path("/proc/self/status"), "VmRSS")
    result = function(*args)
    # Not getrusage: its peak is the parent's at first.
    peak = _field(Path("/proc/self/status"), "VmHWM")
    return result, None if peak is None or before is None else (peak - before) * 1024 / MEGABYTE


def _field(file: Path, name: str) -> int | None:
    """A number of a file of Linux that tells of memory, in kilobytes."""
    if not file.exists():
        return None
    lines = (line.split() for line in file.read_text().splitlines())
    return next((int(words[1]) for words in lines if words[0] == f"{name}:"), None)
