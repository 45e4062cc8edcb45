from pathlib import Path

import pytest
import torch
from helpers import bayesian_task, image_loader, rows, trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mip_lightning import Uniform
from mip_lightning.callbacks import GammaCurve
from mip_lightning.core import Curve, Evaluation, EvaluationResult

NAN = float("nan")


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
