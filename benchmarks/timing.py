"""Times contestants in turn, so that whatever else the machine does meets them all alike."""

import csv
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

Contestant = Callable[[], object]
"""Does once what is timed."""


@dataclass(frozen=True)
class Row:
    """One contestant's figures.

    Attributes:
        network: What it runs on.
        batch: Samples in a batch.
        contestant: Its name.
        median_ms: Median time, in milliseconds.
        spread_ms: Distance between the quartiles, in milliseconds.
        peak_mb: Peak memory, in units of 10^6 bytes; ``None`` where it is not measured.
        device: What it ran on.
    """

    network: str
    batch: int
    contestant: str
    median_ms: float
    spread_ms: float
    peak_mb: float | None = None
    device: str = field(default_factory=lambda: device_name())


def race(
    network: str, batch: int, contestants: Mapping[str, Contestant], rounds: int, warmup: int = 3
) -> list[Row]:
    """Time each contestant once a round, in turn.

    Args:
        network: What they run on, for the table.
        batch: Samples in a batch, for the table.
        contestants: Name to what is timed.
        rounds: Number of rounds.
        warmup: Rounds before those that count.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in track(range(warmup + rounds), description=f"{network}, batch {batch}"):
        for name, contestant in contestants.items():
            elapsed = milliseconds(contestant)
            if number >= warmup:
                times[name].append(elapsed)
    return [Row(network, batch, name, *median_and_spread(values)) for name, values in times.items()]


def report(title: str, rows: list[Row], reference: str, out: Path | None = None) -> None:
    """Print the figures with each contestant's ratio to a reference, and write them as CSV.

    Args:
        title: What was measured.
        rows: The figures.
        reference: The contestant that ratios are taken to, where it took part.
        out: The CSV file; none by default.
    """
    table = Table(title=f"{title} on {device_name()}", box=box.SIMPLE_HEAD)
    for column in ("network", "batch", "contestant"):
        table.add_column(column, no_wrap=True)
    with_peak = any(row.peak_mb is not None for row in rows)
    for column in (
        "median, ms",
        "spread, ms",
        f"ratio to {reference}",
        *(["peak, MB"] if with_peak else []),
    ):
        table.add_column(column, justify="right")
    for row in rows:
        base = next(
            (
                other.median_ms
                for other in rows
                if (other.network, other.batch, other.contestant)
                == (row.network, row.batch, reference)
            ),
            None,
        )
        peak = "" if row.peak_mb is None else f"{row.peak_mb:.0f}"
        figures = (
            f"{row.median_ms:.2f}",
            f"{row.spread_ms:.2f}",
            f"{row.median_ms / base:.2f}" if base else "",
            *([peak] if with_peak else []),
        )
        table.add_row(row.network, str(row.batch), row.contestant, *figures)
    Console().print(table)
    if out is not None:
        with out.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([column.name for column in fields(Row)])
            writer.writerows(astuple(row) for row in rows)


def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    """The GPU's name, or the processor's with the number of its threads in use."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def milliseconds(contestant: Contestant) -> float:
    """Time of one call, by the device's own clock where it has one."""
    if torch.cuda.is_available():
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        contestant()
        end.record()
        end.synchronize()
        elapsed: float = start.elapsed_time(end)
        return elapsed
    begin = time.perf_counter()
    contestant()
    return (time.perf_counter() - begin) * 1e3


def median_and_spread(values: list[float]) -> tuple[float, float]:
    """The median, and the distance between the quartiles."""
    if len(values) < 2:
        return values[0], 0.0
    low, median, high = statistics.quantiles(values, n=4)
    return median, high - low
