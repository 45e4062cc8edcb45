from pathlib import Path

import matplotlib.image
import pytest
from helpers import bayesian_task, image_loader, rows, trainer
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mip_lightning import HyperModel, Uniform, UsageError
from mip_lightning.callbacks import PredictedWeightStats
from mip_lightning.networks import MultilayerPerceptron
from mip_lightning.tasks import BayesianClassification


def test_several_dimensions_are_recorded_along_each_at_the_start_and_the_end():
    callback = PredictedWeightStats(grid_size=4, every_n_epochs=0)
    t = trainer(max_epochs=2, callbacks=[callback], default_root_dir="out")
    task = BayesianClassification(MultilayerPerceptron(6, 3), Uniform(dim=2))
    t.fit(task, image_loader(), image_loader())
    recorded = rows("out/predicted_weight_stats.csv")
    lines = {(r["step"], r["line"]) for r in recorded}
    assert lines == {(s, n) for s in ("0", "6") for n in ("grid", "gamma_0", "gamma_1")}
    along = [r for r in recorded if r["line"] == "gamma_1" and r["tensor"] == "all"]
    assert [float(r["gamma_0"]) for r in along] == [0.5] * 8
    assert [float(r["gamma_1"]) for r in along] == pytest.approx([0, 1 / 3, 2 / 3, 1] * 2)
    image = matplotlib.image.imread("out/predicted_weight_stats.png")
    assert image.shape[1] > 2.3 * image.shape[0]  # a third panel


def test_stats_are_recorded_every_n_steps_and_nothing_is_computed_on_the_others(monkeypatch):
    computed = []
    monkeypatch.setattr(HyperModel, "_predict", counted(HyperModel._predict, computed))
    callback = PredictedWeightStats(grid_size=2, every_n_epochs=0, every_n_steps=4)
    t = trainer(max_epochs=3, callbacks=[callback], default_root_dir="out", limit_val_batches=0)
    t.fit(bayesian_task(), image_loader(), image_loader())
    steps = sorted({int(r["step"]) for r in rows("out/predicted_weight_stats.csv")})
    assert steps == [0, 4, 8, 9]
    assert len(computed) == 9 + 2 * 4  # training steps, and two gammas at each recorded one


def counted(function, calls):
    def call(*args):
        calls.append(1)
        return function(*args)

    return call


def test_stats_are_recorded_before_training_every_n_epochs_and_at_the_end():
    callback = PredictedWeightStats(every_n_epochs=2, grid_size=3)
    loggers = [TensorBoardLogger("out", name="", version=""), CSVLogger("out", version="csv")]
    t = trainer(max_epochs=3, callbacks=[callback], logger=loggers, log_every_n_steps=1)
    t.fit(bayesian_task(), image_loader(), image_loader())
    recorded = rows("out/predicted_weight_stats.csv")
    assert list(recorded[0]) == [
        *("step", "epoch", "line", "tensor", "gamma"),
        *("std", "mean", "norm"),
    ]
    assert sorted({(int(r["step"]), int(r["epoch"])) for r in recorded}) == [(0, 0), (6, 2), (9, 3)]
    assert len(recorded) == 3 * 3 * 5  # times, gammas, "all" and four tensors
    image = matplotlib.image.imread("out/predicted_weight_stats.png")
    assert image.shape[0] > 400
    assert image.std() > 0.05  # something is drawn
    events = EventAccumulator("out").Reload()
    assert [e.step for e in events.Scalars("proportionality/slope")] == [0, 6, 9]
    assert [e.step for e in events.Scalars("proportionality/r2")] == [0, 6, 9]
    assert "predicted_weight_stats" in events.Tags()["images"]
    assert not list(Path("out").glob("*unfinished*"))


class Ordinary(LightningModule):
    def training_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return None


def test_weight_stats_refuse_a_module_that_predicts_no_weights():
    with pytest.raises(UsageError, match="on a Ordinary"):
        trainer(callbacks=[PredictedWeightStats()]).fit(Ordinary(), image_loader())
