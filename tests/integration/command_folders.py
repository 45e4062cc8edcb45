"""What a documented command finds: shortened configurations, small data, a package of one's own."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml
from helpers import ROOT, write_mnist

SWEEP = {"validation_grid_size": 2, "test_grid_size": 3}
SMALL: dict[str, dict[str, Any]] = {
    "BayesianClassification": {**SWEEP, "ensemble_size": 2},
    "Registration": SWEEP,
    "Segmentation": SWEEP,
    "Classification": SWEEP,
    "ConstantWidthUNet": {"features": 4, "levels": 3},
    "ScaleSpaceUNet": {"features": 4, "levels": 3},
    "ResNetLike": {"features": [4, 6]},
    "ScaleSpaceResNet": {"features": [4, 6]},
    "Digits": {"num_train": 200},
    "MNIST": {"num_train": 200},
    "Flowers102": {"num_train": 800, "num_test": 8, "batch_size": 64, "image_size": 32},
    "ImagePairs": {"evaluation_pairs": 2},
    "TemplateBrains": {"num_subjects": 10, "resolution": 6},
}
"""What makes a class's run short."""

AT_MOST = {
    "max_epochs": 2,
    "limit_train_batches": 2,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 1,
    "every_n_epochs": 1,
}


def shortened(node: Any) -> Any:
    """A configuration with less data, smaller networks and fewer epochs, and all else as it was."""
    if isinstance(node, list):
        return [shortened(item) for item in node]
    if isinstance(node, str) and node in SMALL:
        node = {"class_path": node}
    if not isinstance(node, dict):
        return node
    found = {k: v if k == "class_path" else shortened(v) for k, v in node.items()}
    found |= {name: min(found[name], most) for name, most in AT_MOST.items() if name in found}
    if small := SMALL.get(found.get("class_path", "")):
        found["init_args"] = {**found.get("init_args", {}), **small}
    return found


def copy_shortened(folder: Path) -> None:
    """Put ``cli.yaml`` and the experiments into a folder."""
    for path in (ROOT / "cli.yaml", *(ROOT / "experiments").glob("*.yaml")):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(yaml.safe_dump(shortened(yaml.safe_load(path.read_text()))))
    for path in (ROOT / "experiments").glob("*.sh"):
        shutil.copy(path, folder / "experiments")


def copy_checkout(folder: Path, installed: Path) -> None:
    """Put the repository into a folder, and beside it what ``make`` would install."""
    ignored = shutil.ignore_patterns(".*", "runs", "__pycache__")
    shutil.copytree(ROOT, folder, symlinks=True, ignore=ignored, dirs_exist_ok=True)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "mip-lightning").symlink_to(installed / "bin" / "mip-lightning")
    for name in ("ruff", "mypy", "lint-imports"):
        (programs / name).symlink_to(Path(sys.executable).parent / name)
    for marker in ("installed", "installed-dev"):
        (programs.parent / marker).touch()


OWN_DATA = """

import torch
from lightning.pytorch import Callback, LightningDataModule
from torch.utils.data import DataLoader, TensorDataset


class Noisy(LightningDataModule):
    def train_dataloader(self):
        clean = torch.rand(16, 4)
        return DataLoader(TensorDataset(clean + 0.1 * torch.randn_like(clean), clean), 8)

    val_dataloader = test_dataloader = train_dataloader


class Announce(Callback):
    def __init__(self, text: str):
        self.text = text

    def on_fit_end(self, trainer, pl_module):
        print(self.text)
"""
"""What the README leaves to its reader: data for the task, and the callback."""

OWN_CONFIGURATION = """
run_name: own
model:
  class_path: my_package.{task}
  init_args:
    primary: {{class_path: torch.nn.Linear, init_args: {{in_features: 4, out_features: 4}}}}
    prior: Uniform
data: {{class_path: my_package.Noisy}}
trainer: {{max_epochs: 2, log_every_n_steps: 1}}
"""


def write_own_package(folder: Path) -> None:
    """``my_package.py`` from the README's code, and configurations that name its classes.

    ``denoising.yaml`` and ``measured.yaml`` name the README's tasks; ``callbacks.yaml`` is its
    YAML.
    """
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    (tasks,) = (block for block in blocks if "class Denoising" in block)
    (callbacks,) = re.findall(r"^```yaml\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    (folder / "my_package.py").write_text(tasks + OWN_DATA)
    (folder / "callbacks.yaml").write_text(callbacks)
    for name, task in (("denoising", "Denoising"), ("measured", "MeasuredDenoising")):
        (folder / f"{name}.yaml").write_text(OWN_CONFIGURATION.format(task=task))


def write_scans(folder: Path) -> Path:
    """Slices of 15 people in the layout of neurite-OASIS, each with 24 structures."""
    generator = np.random.default_rng(0)
    shape = (32, 40, 1)
    stripes = np.broadcast_to(np.arange(40)[None, :, None] * 25 // 40, shape).astype(np.uint8)
    for person in range(1, 16):
        scan = folder / f"OASIS_OAS1_{person:04d}_MR1"
        scan.mkdir(parents=True)
        image = stripes / 24 + 0.1 * generator.random(shape)
        for name, values in (("norm", image.astype(np.float32)), ("seg24", stripes)):
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), scan / f"slice_{name}.nii.gz")
    return folder


def write_volumes(folder: Path) -> Path:
    """Ten volumes in the layout of the Medical Segmentation Decathlon."""
    generator = np.random.default_rng(0)
    task = folder / "Task04_Hippocampus"
    entries = []
    for number in range(10):
        image, label = f"imagesTr/h_{number}.nii.gz", f"labelsTr/h_{number}.nii.gz"
        labels = np.zeros((16, 20, 12), np.uint8)
        labels[4:8, 4:12, 4:8], labels[8:12, 4:12, 4:8] = 1, 2
        values = (labels + 0.1 * generator.random(labels.shape)).astype(np.float32)
        for name, volume in ((image, values), (label, labels)):
            (task / name).parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), task / name)
        entries.append({"image": f"./{image}", "label": f"./{label}"})
    names = {"0": "background", "1": "Anterior", "2": "Posterior"}
    (task / "dataset.json").write_text(json.dumps({"labels": names, "training": entries}))
    return folder


def data_for(command: str, home: Path) -> Path:
    """The folder for which a command has ``DIR`` or ``DATA_DIR``; it is made where it is missing.

    The lists of Flowers102 are checked by torchvision, so only the real ones will do.
    """
    if "flowers" in command:
        real = Path(os.environ.get("MIP_TEST_DATA", ROOT.parent / "shared" / "data"), "flowers102")
        if not real.is_dir():
            pytest.skip(f"no real data at {real}; set MIP_TEST_DATA")
        return real
    if "Decathlon" in command:
        name, write = "decathlon", write_volumes
    elif "mnist" in command:
        name, write = "mnist", write_mnist
    else:
        name, write = "oasis", write_scans
    folder = home / "data" / name
    return folder if folder.is_dir() else write(folder)
