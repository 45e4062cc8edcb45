"""Checkpoints are whole at every moment, and no changed byte is read."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from torch import nn

from mip_lightning import HyperModel, ThetaConfig, Uniform, UsageError
from mip_lightning.tasks import BayesianClassification
from mip_lightning.trainer._checkpoint_io import WholeCheckpoints
from mip_lightning.utilities.files import load_plain

CONTENT = {
    "state_dict": {"a": torch.arange(50.0), "b": torch.arange(12).reshape(3, 4)},
    "epoch": 3,
    "name": "one",
}


def is_same(found: object) -> bool:
    return (
        isinstance(found, dict)
        and found.keys() == CONTENT.keys()
        and (found["epoch"], found["name"]) == (3, "one")
        and found["state_dict"].keys() == CONTENT["state_dict"].keys()
        and all(torch.equal(v, CONTENT["state_dict"][k]) for k, v in found["state_dict"].items())
    )


def test_a_file_with_a_changed_byte_is_refused_or_reads_as_before():
    path = Path("file.ckpt")
    WholeCheckpoints().save_checkpoint(CONTENT, path)
    whole = path.read_bytes()
    refused = 0
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << random.Random(position).randrange(8)
        path.write_bytes(changed)
        try:
            assert is_same(load_plain(path, "ckpt_path")), position
        except UsageError:
            refused += 1
    data = sum(t.numel() * t.element_size() for t in CONTENT["state_dict"].values())
    assert refused > data


def test_a_changed_byte_is_refused_wherever_a_checkpoint_is_read():
    network = nn.Linear(4, 2)
    WholeCheckpoints().save_checkpoint(network.state_dict(), Path("trained.pt"))
    WholeCheckpoints().save_checkpoint({"state_dict": network.state_dict()}, Path("run.ckpt"))
    for name in ("trained.pt", "run.ckpt"):
        content = bytearray(Path(name).read_bytes())
        weight = network.weight.detach().numpy().tobytes()
        content[content.index(weight) + 3] ^= 1
        Path(name).write_bytes(content)
    with pytest.raises(UsageError, match=r"pretrained='trained.pt' is damaged"):
        HyperModel(nn.Linear(4, 2), Uniform(0, 1), theta=ThetaConfig(pretrained="trained.pt"))
    with pytest.raises(UsageError, match=r"ckpt_path='run.ckpt' is damaged"):
        WholeCheckpoints().load_checkpoint("run.ckpt")
    with pytest.raises(UsageError, match=r"checkpoint_path='run.ckpt' is damaged"):
        BayesianClassification.load_from_checkpoint("run.ckpt")


def test_weights_in_the_old_format_are_still_read():
    network = nn.Linear(4, 2)
    torch.save(network.state_dict(), "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(load_plain("old.pt", "pretrained")["weight"], network.weight)


def test_pretrained_weights_that_are_not_finite_are_refused():
    network = nn.Linear(4, 2)
    with torch.no_grad():
        network.weight[0, 0] = torch.nan
    torch.save(network.state_dict(), "trained.pt")
    with pytest.raises(UsageError, match=r"pretrained='trained.pt': weight holds NaN"):
        HyperModel(nn.Linear(4, 2), Uniform(0, 1), theta=ThetaConfig(pretrained="trained.pt"))


KILLED_WHILE_IT_SAVES = """
import os, random, signal, time, torch
from pathlib import Path
from mip_lightning.trainer._checkpoint_io import WholeCheckpoints

def save(number):
    weights = {"w": torch.full((2**22,), number)}
    WholeCheckpoints().save_checkpoint({"epoch": number, "state_dict": weights}, "last.ckpt")

save(0)
random.seed(0)
for trial in range(20):
    child = os.fork()
    if not child:
        for number in range(1, 10_000):
            save(number)
    time.sleep(random.uniform(0.02, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = torch.load("last.ckpt", weights_only=True)
    assert bool((found["state_dict"]["w"] == found["epoch"]).all())
"""


def test_a_process_that_is_killed_while_it_saves_leaves_a_whole_checkpoint(tmp_path):
    other = Path("/dev/shm")  # on another file system, where there is one
    folder = other if other.is_dir() and other.stat().st_dev != tmp_path.stat().st_dev else tmp_path
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", KILLED_WHILE_IT_SAVES], env=environment, check=True)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before():
    WholeCheckpoints().save_checkpoint(CONTENT, Path("file.ckpt"))
    cannot_be_pickled = {**CONTENT, "epoch": (x for x in [])}
    with pytest.raises((AttributeError, TypeError)):
        WholeCheckpoints().save_checkpoint(cannot_be_pickled, Path("file.ckpt"))
    assert is_same(load_plain("file.ckpt", "ckpt_path"))
    assert [path.name for path in Path().iterdir()] == ["file.ckpt"]
