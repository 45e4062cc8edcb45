"""How fast the data modules give batches: those whose data needs no download."""

from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path

from lightning.pytorch import LightningDataModule

from benchmarks.timing import Row, race, report
from mip_lightning.data import Digits, ImagePairs, TemplateBrains


def run(rounds: int = 5, batches: int = 50, small: bool = False, out: Path | None = None) -> None:
    """Training batches of the embedded digits and of pairs of template brains, on the CPU.

    The time is that of all batches; the title of the table says how many.

    Args:
        rounds: Number of rounds.
        batches: Number of batches in a round, as far as there are.
        small: Few subjects, to see whether it runs.
        out: A CSV file for the figures.
    """
    subjects = 12 if small else 50
    modules: dict[tuple[str, int], dict[str, LightningDataModule]] = {
        ("Digits", 64): {
            "in the process": Digits(batch_size=64),
            "two workers": Digits(batch_size=64, num_workers=2),
        },
        ("TemplateBrains", 8): {
            "in the process": ImagePairs(TemplateBrains(subjects), batch_size=8),
            "two workers": ImagePairs(TemplateBrains(subjects), batch_size=8, num_workers=2),
        },
    }
    rows: list[Row] = []
    for (source, batch), contestants in modules.items():
        for module in contestants.values():
            module.setup("fit")
        loads = {
            name: partial(_load, module.train_dataloader(), batches)
            for name, module in contestants.items()
        }
        rows += race(source, batch, loads, rounds, warmup=1)
    report(f"{batches} training batches, or an epoch", rows, "in the process", out)


def _load(loader: Iterable[object], batches: int) -> None:
    for _ in islice(loader, batches):
        pass
