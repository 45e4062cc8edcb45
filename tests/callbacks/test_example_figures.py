"""ExampleFigures: when it draws, and in which mode."""

from pathlib import Path

import pytest
from helpers import Denoising, loader, trainer
from matplotlib.figure import Figure
from torch import nn

from mip_lightning import Uniform
from mip_lightning.callbacks import ExampleFigures


class Drawn(Denoising):
    """Notes the step and the mode in which it is drawn."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(4, 4), nn.Dropout()), Uniform(0, 1))
        self.drawn: list[tuple[int, bool]] = []

    def plot_examples(self, batch, gammas):
        self.drawn.append((self.trainer.global_step, self.training))
        return {"example": Figure()}


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_epochs": 5}, [8, 16, 20]),  # four steps an epoch
        ({"max_epochs": 4}, [8, 16]),
        ({"max_steps": 14, "max_epochs": -1}, [8, 14]),
        ({"max_epochs": 3, "check_val_every_n_epoch": 2}, [8]),
    ],
)
def test_figures_are_drawn_every_so_many_epochs_and_at_the_end_whatever_ends_training(
    options, steps
):
    module = Drawn()
    figures = ExampleFigures(every_n_epochs=2)
    trainer(callbacks=[figures], default_root_dir=Path(), **options).fit(module, loader(), loader())
    assert module.drawn == [(step, False) for step in steps]
    assert {path.name for path in Path().glob("*.png")} == {
        f"val_example_{step}.png" for step in steps
    }
    assert module.training  # as Lightning leaves it


def test_neither_the_sanity_check_nor_a_validation_by_itself_draws():
    module = Drawn()
    figures = ExampleFigures(every_n_epochs=1)
    trainer(callbacks=[figures]).validate(module, loader(), verbose=False)
    assert module.drawn == []
