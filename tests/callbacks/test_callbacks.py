from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from helpers import bayesian_task, image_loader, rows, trainer
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from mip_lightning import HyperModel, Joint, Normal, Uniform, UsageError
from mip_lightning.callbacks import GammaCurve, PredictedWeightStats, PredictionWriter
from mip_lightning.callbacks._files import StepTable
from mip_lightning.core import Curve, Evaluation, EvaluationResult
from mip_lightning.diagnostics.curves import label_rows
from mip_lightning.diagnostics.weights import (
    along_axis,
    proportionality,
    weight_statistics,
)
from mip_lightning.networks import LeNet, MultilayerPerceptron
from mip_lightning.tasks import BayesianClassification


def test_the_line_of_std_against_gamma_is_that_of_numpy():
    x = torch.linspace(0, 1, 11)
    y = 0.3 + 0.5 * x + 0.1 * torch.rand(11)
    slope, _ = np.polyfit(x.double(), y.double(), 1)
    r = np.corrcoef(x.double(), y.double())[0, 1]
    fit = proportionality(x, y)
    assert fit.slope == pytest.approx(slope / y.mean().item(), rel=1e-5)
    assert fit.r2 == pytest.approx(r**2, rel=1e-5)


def test_numbers_of_single_precision_are_written_in_their_own_digits(tmp_path):
    table = StepTable(tmp_path / "t.csv", ["step", "value", "name"], None)
    for value in (torch.tensor(0.05).item(), 1 / 3, 1.0, float("nan")):
        table.append([{"step": 1, "value": value, "name": "a"}])
    values = [row["value"] for row in rows(tmp_path / "t.csv")]
    assert values == ["0.05", "0.3333333333333333", "1.0", "nan"]


def test_a_constant_std_has_no_slope():
    assert proportionality(torch.linspace(0, 1, 5), torch.full((5,), 0.2)) == (0.0, 0.0)


def test_the_default_formulation_is_a_line_through_zero_and_mip_is_flat():
    grid = Uniform(0, 1).grid(11)
    lines = {}
    for formulation in ("default", "mip"):
        torch.manual_seed(0)
        stds = weight_statistics(HyperModel(LeNet(), Uniform(0, 1), formulation), grid)
        lines[formulation] = proportionality(grid[:, 0], stds["all"].std)
    assert lines["default"].r2 > 0.999999
    assert lines["default"].slope == pytest.approx(2, abs=1e-4)  # 1 / mean(gamma)
    assert abs(lines["mip"].slope) < 0.1


def test_statistics_are_those_of_all_elements_together_and_of_each_tensor():
    model = HyperModel(nn.Linear(3, 2), Normal(dim=2))
    grid = model.prior.grid(4)
    found = weight_statistics(model, grid)
    assert list(found) == ["all", "weight", "bias"]
    for i, gamma in enumerate(grid):
        theta = {name: t.detach().numpy().ravel() for name, t in model.at(gamma).theta.items()}
        theta["all"] = np.concatenate(list(theta.values()))
        for name, values in theta.items():
            assert found[name].std[i] == pytest.approx(values.std(), rel=1e-5)
            assert found[name].mean[i] == pytest.approx(values.mean(), rel=1e-4, abs=1e-7)
            assert found[name].norm[i] == pytest.approx(np.linalg.norm(values), rel=1e-5)


def test_a_line_along_one_dimension_keeps_the_others_at_their_medians():
    line = along_axis(Joint({"a": Uniform(2, 4), "b": Normal(1, 3)}), 0, 3)
    torch.testing.assert_close(line, torch.tensor([[2.0, 1.0], [3.0, 1.0], [4.0, 1.0]]))


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


def test_validation_curves_are_drawn_every_n_epochs_and_at_the_end():
    logger = TensorBoardLogger("out", name="", version="")
    callbacks = [GammaCurve(every_n_epochs=2)]
    t = trainer(max_epochs=5, callbacks=callbacks, logger=logger, log_every_n_steps=1)
    t.fit(bayesian_task(), image_loader(), image_loader())
    images = EventAccumulator("out").Reload().Images("val_gamma_curve")
    assert [image.step for image in images] == [6, 12, 15]


def test_a_logger_that_takes_images_gets_the_figures():
    class Images(CSVLogger):
        def log_image(self, key, images, step=None):
            taken.append((key, [Path(image).is_file() for image in images], step))

    taken = []
    t = trainer(callbacks=[GammaCurve()], logger=Images("out"), log_every_n_steps=1)
    t.fit(bayesian_task(), image_loader(), image_loader())
    assert taken == [("val_gamma_curve", [True], 3)]


def test_the_test_curve_holds_what_the_module_measured():
    task = bayesian_task(test_grid_size=4)
    trainer(callbacks=[GammaCurve()], default_root_dir="out").test(
        task, image_loader(), verbose=False
    )
    recorded = rows("out/test_gamma_curve.csv")
    assert [float(r["gamma"]) for r in recorded] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    expected = task.evaluation("test").result.curves["accuracy"].values.tolist()
    assert [float(r["accuracy"]) for r in recorded] == pytest.approx(expected)


NAN = float("nan")


def test_the_best_gamma_of_each_metric_with_a_better_end_is_marked(monkeypatch):
    curves = {
        "loss": Curve(torch.tensor([3.0, 1.0, 2.0]), False),
        "dice": Curve(torch.tensor([0.1, 0.5, 0.5]), True),
        "volume": Curve(torch.tensor([1.0, 2.0, 3.0]), None),
        "missing": Curve(torch.tensor([NAN, NAN, NAN]), True),
        "error": Curve(torch.tensor([NAN, 0.2, 0.1]), False),
    }
    result = EvaluationResult("test", ("gamma",), Uniform(0, 1).grid(3), curves)

    def finish(evaluation, label_names):
        evaluation.result = result
        return result

    monkeypatch.setattr(Evaluation, "finish", finish)
    task = bayesian_task(test_grid_size=3)
    trainer(callbacks=[GammaCurve()], default_root_dir="out").test(
        task, image_loader(), verbose=False
    )
    recorded = rows("out/test_gamma_curve.csv")
    marks = [f"{name}_is_best" for name in ("loss", "dice", "missing", "error")]
    assert list(recorded[0]) == ["gamma", *curves, *marks]
    assert [[row[mark] for row in recorded] for mark in marks] == [
        ["0", "1", "0"],
        ["0", "1", "0"],  # the first of two
        ["0", "0", "0"],
        ["0", "0", "1"],
    ]
    assert [row["volume"] for row in recorded] == ["1.0", "2.0", "3.0"]


def test_a_label_whose_metric_is_nan_at_every_gamma_has_no_best():
    curve = Curve(
        torch.tensor([0.1, 0.2]), True, {1: torch.tensor([0.1, 0.2]), 2: torch.tensor([NAN, NAN])}
    )
    found = label_rows({}, ["gamma"], Uniform(0, 1).grid(2), "dice", curve)
    assert [(row["label"], row["best"]) for row in found] == [(1, 0), (1, 1), (2, 0), (2, 0)]


@pytest.mark.parametrize("suffix", [".csv", ".pt"])
def test_predictions_are_written_in_the_order_of_the_data(suffix):
    task = bayesian_task()
    writer = PredictionWriter(f"deep/predictions{suffix}")
    trainer(callbacks=[writer], default_root_dir="out").predict(task, image_loader())
    images = image_loader().dataset.tensors[0]
    expected = task.predict_step(images, 0)
    path = Path(f"out/deep/predictions{suffix}")
    if suffix == ".pt":
        written = torch.load(path, weights_only=True)
        assert written.keys() == expected.keys()
        torch.testing.assert_close(written["probabilities"], expected["probabilities"])
    else:
        written = rows(path)
        assert [int(r["sample"]) for r in written] == list(range(20))
        assert [int(r["predicted"]) for r in written] == expected["predicted"].tolist()
        first = [float(written[0][f"probabilities_{c}"]) for c in range(3)]
        assert first == pytest.approx(expected["probabilities"][0].tolist(), rel=1e-5)
    assert len(list(Path("out/deep").iterdir())) == 1


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(*image_loader().dataset.tensors, strict=True))


def test_predictions_of_a_stream_are_written_in_its_order():
    task = bayesian_task()
    t = trainer(callbacks=[PredictionWriter("p.pt")], default_root_dir="out")
    with pytest.warns(UserWarning, match="Couldn't infer the batch indices"):
        t.predict(task, DataLoader(Stream(), 8))
    expected = task.predict_step(image_loader().dataset.tensors[0], 0)["probabilities"]
    torch.testing.assert_close(torch.load("out/p.pt")["probabilities"], expected)


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


class Ordinary(LightningModule):
    def training_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return None


def test_weight_stats_refuse_a_module_that_predicts_no_weights():
    with pytest.raises(UsageError, match="on a Ordinary"):
        trainer(callbacks=[PredictedWeightStats()]).fit(Ordinary(), image_loader())
