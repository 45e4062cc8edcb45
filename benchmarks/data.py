"""How fast the data modules give batches: those that need no download."""

from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from lightning.pytorch import LightningDataModule
from PIL import Image

from benchmarks.timing import Row, race, report
from mip_lightning.data import Digits, ImageFolders, ImagePairs, TemplateBrains


def run(rounds: int = 5, batches: int = 50, small: bool = False, out: Path | None = None) -> None:
    """Training batches of digits, photographs and pairs of template brains, on the CPU.

    Photographs are random images of 256 pixels in two classes; a network gets 128 of them.

    The time is that of all batches; the title of the table says how many.

    Args:
        rounds: Number of rounds.
        batches: Number of batches in a round, as far as there are.
        small: Few subjects and photographs, to see whether it runs.
        out: A CSV file for the figures.
    """
    with TemporaryDirectory() as folder:
        _write_photographs(Path(folder), 20 if small else 640)
        rows = _rows(folder, rounds, batches, 12 if small else 50)
    report(f"{batches} training batches, or an epoch", rows, "in the process", out)


def _rows(photographs: str, rounds: int, batches: int, subjects: int) -> list[Row]:
    modules: dict[tuple[str, int], dict[str, LightningDataModule]] = {
        ("Digits", 64): {
            "in the process": Digits(batch_size=64),
            "two workers": Digits(batch_size=64, num_workers=2),
        },
        ("ImageFolders", 32): {
            "in the process": ImageFolders(photographs, batch_size=32, image_size=128),
            "two workers": ImageFolders(photographs, batch_size=32, image_size=128, num_workers=2),
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
    return rows


def _write_photographs(folder: Path, number: int) -> None:
    draws = np.random.default_rng(0)
    for index in range(number):
        path = folder / f"class_{index % 2}" / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(path)


def _load(loader: Iterable[object], batches: int) -> None:
    for _ in islice(loader, batches):
        pass
