"""What all tests share: shape checks, a clean process, and where real data may be."""

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from hypothesis import settings
from lightning.pytorch import seed_everything

# Lightning 2.6 calls what jsonargparse deprecates (Lightning issue 21900); this turns the warnings
# off by jsonargparse's own means, for their class is private and no filter may name it.
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"

# The same commit gives the same answer on a machine of any speed.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def _clean_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fresh folder, seed and environment; nothing that a test sets stays."""
    environment = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mip-lightning"])  # LightningCLI warns of foreign arguments
    seed_everything(0, verbose=False)
    yield
    os.environ.clear()
    os.environ.update(environment)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        warnings.warn("a test left a process group behind", stacklevel=1)


@pytest.fixture
def real_mnist() -> Path:
    """The folder of the real MNIST, where it is to be had."""
    folder = Path(os.environ.get("MIP_TEST_DATA", ROOT.parent / "shared" / "data")) / "mnist"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MIP_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the wheel is installed, without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "runs", "__pycache__")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=source, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    options = ["--no-deps", "--no-index", "--quiet", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    return target
