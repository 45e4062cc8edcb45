from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from helpers import LossAlone, bayesian_task, image_loader, rows, trainer
from helpers import loader as vectors
from lightning.pytorch import LightningModule
from scipy.stats import gaussian_kde
from torch import nn

from mip_lightning import ThetaConfig, Uniform, UsageError
from mip_lightning.callbacks import Distributions


def test_a_frozen_normalization_stays_frozen_and_a_second_fit_has_a_file_of_its_own():
    frozen: list[bool] = []

    class Logging(LossAlone):
        """What its loss logs belongs to no step when the callback calls it."""

        def loss(self, batch, primary):
            loss = super().loss(batch, primary)
            self.log("part", loss)
            return loss

        def on_train_batch_start(self, batch, batch_idx):
            frozen.append(not self.model.primary[1].training)

        def on_train_epoch_start(self):
            self.model.primary[1].eval()

    distributions = Distributions(num_gammas=2)
    for folder in ("first", "second"):
        task = Logging(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), Uniform(0, 1))
        t = trainer(callbacks=[distributions], default_root_dir=folder)
        t.fit(task, vectors(), vectors())
        assert {row["step"] for row in rows(f"{folder}/distributions.csv")} == {"0", "4"}
    assert frozen
    assert all(frozen)


def test_densities_are_recorded_before_the_first_step_and_at_the_end():
    initial = bayesian_task()
    expected = initial.model.at(torch.tensor([1.0])).theta["layers.1.weight"].detach()
    t = trainer(max_epochs=2, callbacks=[Distributions(num_gammas=3)], default_root_dir="out")
    t.fit(initial, image_loader(), image_loader())
    recorded = rows("out/distributions.csv")
    assert {row["step"] for row in recorded} == {"0", "6"}
    assert {row["network"] for row in recorded} == {"ordinary", "hypernetwork"}
    assert {row["gamma"] for row in recorded} == {"", "0.0", "0.5", "1.0"}
    curve = [
        (float(row["value"]), float(row["density"]))
        for row in recorded
        if (row["step"], row["of"], row["layer"], row["gamma"])
        == ("0", "weights", "layers.1", "1.0")
    ]
    points, density = np.array(curve).T
    kernel = gaussian_kde(expected.double().flatten().numpy())
    np.testing.assert_allclose(density, kernel(points), rtol=1e-3, atol=1e-6)
    for when in ("before", "after"):
        assert matplotlib.image.imread(f"out/distributions_{when}.png").std() > 0.05


def test_recording_does_not_change_the_training():
    weights = []
    for callbacks in ([], [Distributions()]):
        torch.manual_seed(0)
        task = bayesian_task(theta=ThetaConfig())
        t = trainer(callbacks=callbacks, default_root_dir="out")
        t.fit(task, image_loader(), image_loader())
        weights.append([p.detach().clone() for p in task.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"limit_val_batches": 0}])
def test_it_stands_shortened_runs(options):
    t = trainer(callbacks=[Distributions()], default_root_dir="out", **options)
    t.fit(bayesian_task(), image_loader(), image_loader())
    assert ("fast_dev_run" in options) == (not Path("out").exists())


def test_a_resumed_run_adds_its_end_alone():
    def fit(epochs, resume=None):
        t = trainer(max_epochs=epochs, callbacks=[Distributions()], default_root_dir="out")
        t.fit(bayesian_task(), image_loader(), image_loader(), ckpt_path=resume)
        return t

    fit(1).save_checkpoint("one.ckpt")
    fit(2, resume="one.ckpt")
    assert list(dict.fromkeys(row["step"] for row in rows("out/distributions.csv"))) == [
        "0",
        "3",
        "6",
    ]


def test_what_is_no_hypernetwork_is_refused():
    with pytest.raises(UsageError, match="needs a HyperLightningModule"):
        Distributions().setup(trainer(), LightningModule(), "fit")
    with pytest.raises(UsageError, match="num_gammas=0"):
        Distributions(num_gammas=0)
