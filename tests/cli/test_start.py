"""What the command answers before it imports torch."""

import subprocess
import sys

import pytest
from helpers import ROOT

from mip_lightning import __main__ as start
from mip_lightning.cli.main import MipLightningCLI

ANSWER = """
import sys
from mip_lightning.__main__ import main
sys.argv = ["mip-lightning", *sys.argv[1:]]
main()
assert not {"torch", "lightning"} & set(sys.modules)
"""


@pytest.mark.parametrize(
    ("argument", "says"), [("--version", "mip-lightning 0.1.0\npython 3."), ("--help", "usage:")]
)
def test_version_and_help_need_neither_torch_nor_lightning(argument, says):
    done = subprocess.run(
        [sys.executable, "-c", ANSWER, argument],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(says)


def test_the_help_names_the_subcommands_of_the_parser():
    assert start.SUBCOMMANDS.keys() == MipLightningCLI.subcommands().keys()


def test_a_callback_of_the_users_takes_the_place_of_the_default_one():
    from jsonargparse import Namespace
    from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary, TQDMProgressBar

    from mip_lightning.callbacks import GammaCurve
    from mip_lightning.cli._default_callbacks import default_callbacks

    trainer = Namespace(
        enable_model_summary=None, enable_progress_bar=None, enable_checkpointing=None,
        fast_dev_run=False, limit_val_batches=None,
    )  # fmt: skip
    options = Namespace(trainer=trainer, checkpoint=ModelCheckpoint())
    names = [type(c).__name__ for c in default_callbacks("fit", options, [])]
    assert names == [
        "GammaCurve",
        "HyperModelSummary",
        "RunProgressBar",
        "StartChecks",
        "ModelCheckpoint",
        "LastCheckpoint",
    ]
    chosen = [GammaCurve(), ModelSummary(), TQDMProgressBar()]
    own = ModelCheckpoint(monitor="val_loss", save_last=True)
    assert [type(c).__name__ for c in default_callbacks("fit", options, [*chosen, own])] == [
        "StartChecks"
    ]
    snapshots = ModelCheckpoint(every_n_epochs=10, save_top_k=-1)
    names = [type(c).__name__ for c in default_callbacks("fit", options, [*chosen, snapshots])]
    assert names == ["StartChecks", "ModelCheckpoint", "LastCheckpoint"]
