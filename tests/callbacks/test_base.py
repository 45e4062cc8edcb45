"""HyperCallback: what a user's own callback is given."""

from helpers import LossAlone, loader, rows, trainer
from matplotlib.figure import Figure
from torch import nn

from mip_lightning import Uniform
from mip_lightning.callbacks import HyperCallback


class Losses(HyperCallback):
    def on_train_start(self, trainer, pl_module):
        self.losses = self.table(trainer, "losses.csv", ["step", "loss"])

    def on_train_epoch_end(self, trainer, pl_module):
        self.losses.append([{"step": trainer.global_step, "loss": 0.5}])
        self.publish(trainer, Figure(), self.folder / "losses.png")


def fit(epochs: int, **options) -> None:
    runner = trainer(max_epochs=epochs, callbacks=[Losses()], default_root_dir="out")
    runner.fit(LossAlone(nn.Linear(4, 4), Uniform(0, 1)), loader(), loader(), **options)
    runner.save_checkpoint("out/here.ckpt")


def test_a_table_goes_on_in_a_resumed_run_and_takes_a_new_name_in_another():
    fit(2)
    fit(3, ckpt_path="out/here.ckpt")
    assert [row["step"] for row in rows("out/losses.csv")] == ["4", "8", "12"]
    fit(1)
    assert [row["step"] for row in rows("out/losses_1.csv")] == ["4"]


def test_a_trial_writes_nothing(tmp_path):
    runner = trainer(callbacks=[Losses()], default_root_dir="out", fast_dev_run=True)
    runner.fit(LossAlone(nn.Linear(4, 4), Uniform(0, 1)), loader(), loader())
    assert not list(tmp_path.rglob("losses*"))
