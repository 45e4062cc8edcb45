"""HoldMemory: what is freed is not taken anew, page by page."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT, LossAlone, loader, trainer
from torch import nn

from mip_lightning import Uniform
from mip_lightning.callbacks import HoldMemory

FAULTS = """
import resource, sys
import torch
from mip_lightning.callbacks.hold_memory import hold_memory

if sys.argv[1] == "hold" and not hold_memory():
    print(-1)
    raise SystemExit

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for _ in range(10):  # until the heap has room for it between what lies there
    faults()
print(sum(faults() for _ in range(20)))
"""


def test_what_is_freed_is_used_again():
    found = {}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for choice in ("hold", "give back"):
        command = [sys.executable, "-c", FAULTS, choice]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        found[choice] = int(done.stdout)
    if found["hold"] < 0:
        pytest.skip("the C library is not glibc")
    assert found["give back"] >= 20 * 2**5  # pages of 2 MB, the largest that come unasked
    assert found["hold"] < found["give back"] / 3


def test_another_c_library_is_told_and_left_alone(monkeypatch, caplog):
    monkeypatch.setattr(sys, "platform", "darwin")
    with caplog.at_level("INFO"):
        module = LossAlone(nn.Linear(4, 4), Uniform(0, 1))
        trainer(callbacks=[HoldMemory()]).fit(module, loader(), loader())
    assert "HoldMemory does nothing" in caplog.text
