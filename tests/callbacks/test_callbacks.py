from pathlib import Path

import pytest
from helpers import bayesian_task, image_loader, rows, trainer

from mip_lightning import Normal, Uniform, UsageError
from mip_lightning.callbacks import GammaCurve, PredictedWeightStats, PredictionWriter
from mip_lightning.networks import MultilayerPerceptron
from mip_lightning.tasks import BayesianClassification


@pytest.mark.parametrize("prior", [Uniform(0, 1), Normal(dim=3)])
def test_callbacks_need_no_logger_and_any_number_of_dimensions(prior):
    task = BayesianClassification(MultilayerPerceptron(6, 3), prior)
    callbacks = [PredictedWeightStats(), GammaCurve()]
    trainer(callbacks=callbacks, default_root_dir="out").fit(task, image_loader(), image_loader())
    trainer(callbacks=callbacks, default_root_dir="out").test(task, image_loader(), verbose=False)
    names = {path.name for path in Path("out").iterdir()}
    assert names == {
        "predicted_weight_stats.csv",
        "predicted_weight_stats.png",
        "val_gamma_curve.csv",
        "val_gamma_curve.png",
        "test_gamma_curve.csv",
        "test_gamma_curve.png",
    }


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"limit_val_batches": 0}])
def test_callbacks_stand_shortened_runs(options):
    t = trainer(callbacks=[PredictedWeightStats(), GammaCurve()], **options)
    t.fit(bayesian_task(), image_loader(), image_loader())
    assert ("fast_dev_run" in options) == (not list(Path().iterdir()))


def test_a_resumed_run_goes_on_with_its_files_without_a_row_twice():
    def fit(epochs, resume=None):
        callbacks = [PredictedWeightStats(grid_size=2), GammaCurve()]
        t = trainer(max_epochs=epochs, callbacks=callbacks, default_root_dir="out")
        t.fit(bayesian_task(), image_loader(), image_loader(), ckpt_path=resume, weights_only=True)
        return t

    fit(1).save_checkpoint("one.ckpt")
    fit(3, resume="one.ckpt")  # as if it went on too far, and was stopped
    before = rows("out/predicted_weight_stats.csv")
    fit(3, resume="one.ckpt")
    after = rows("out/predicted_weight_stats.csv")
    assert [r["step"] for r in after] == [r["step"] for r in before]
    assert sorted({int(r["step"]) for r in after}) == [0, 3, 6, 9]
    curve = rows("out/val_gamma_curve.csv")
    assert [int(r["step"]) for r in curve] == [step for step in (3, 6, 9) for _ in range(5)]


def test_a_new_run_in_the_same_folder_overwrites_nothing():
    for _ in range(2):
        t = trainer(callbacks=[PredictedWeightStats(), GammaCurve()], default_root_dir="out")
        t.fit(bayesian_task(), image_loader(), image_loader())
    names = {path.name for path in Path("out").iterdir()}
    assert {"predicted_weight_stats.csv", "predicted_weight_stats_1.csv"} <= names
    assert {"predicted_weight_stats.png", "predicted_weight_stats_1.png"} <= names
    assert {"val_gamma_curve.csv", "val_gamma_curve_1.csv"} <= names


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PredictionWriter("a.txt"), "path='a.txt'.*by suffix"),
        (lambda: PredictedWeightStats(every_n_epochs=-1), "every_n_epochs=-1"),
        (lambda: PredictedWeightStats(grid_size=1), "grid_size=1"),
    ],
)
def test_an_impossible_option_is_refused(make, says):
    with pytest.raises(UsageError, match=says):
        make()
