"""What the library does at Lightning's hooks stays done, whatever a user's task overrides."""

import copy
import inspect
from pathlib import Path

import pytest
import torch
from helpers import Denoising, loader, trainer
from lightning.pytorch import Callback, LightningModule, seed_everything
from torch import nn
from torch.nn import functional as F

from mip_lightning import HyperLightningModule, StepOutput, Uniform, UsageError

HOOKS = [
    name
    for name, method in inspect.getmembers(LightningModule, inspect.isfunction)
    if name in ("setup", "teardown")
    or (name.startswith("on_") and name not in ("on_gpu", "on_after_batch_transfer"))
    if name != "on_before_batch_transfer"
]


class Overriding(Denoising):
    """Overrides every hook without ``super()``."""


for hook in HOOKS:
    setattr(Overriding, hook, lambda self, *args, **kwargs: None)


class Logged(Callback):
    def __init__(self):
        self.values: list[dict[str, float]] = []

    def on_validation_end(self, trainer, pl_module):
        self.values.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def fit(kind: type[HyperLightningModule], **options) -> tuple[HyperLightningModule, Logged]:
    seed_everything(0, verbose=False)
    logged = Logged()
    task = kind(nn.Linear(4, 4), Uniform(0, 1), **options)
    trainer(max_epochs=3, callbacks=[logged]).fit(task, loader(), loader(20, 8))
    return task, logged


def test_overridden_hooks_change_no_number():
    assert {"on_validation_epoch_start", "on_test_epoch_end", "on_train_start"} < set(HOOKS)
    (plain, expected), (task, logged) = fit(Denoising), fit(Overriding)
    assert len(logged.values) == 4  # with the sanity check
    assert logged.values == expected.values
    assert {"val_mse", "val_mse_best", "val_loss"} <= logged.values[-1].keys()
    for weight, other in zip(plain.parameters(), task.parameters(), strict=True):
        assert torch.equal(weight, other)
    for measure in ("validate", "test"):
        (one,), (other,) = (
            getattr(trainer(), measure)(t, loader(20, 8), verbose=False) for t in (plain, task)
        )
        assert one == other


def test_a_resumed_run_draws_the_same_gamma_where_checkpoint_hooks_are_overridden():
    task, _ = fit(Overriding)
    t = trainer()
    t.fit(task, loader(), loader())
    t.save_checkpoint("last.ckpt")
    torch.manual_seed(1)
    other = Overriding(nn.Linear(4, 4), Uniform(0, 1))
    assert other.gamma_seed != task.gamma_seed
    trainer(max_epochs=2).fit(other, loader(), loader(), ckpt_path="last.ckpt")
    assert other.gamma_seed == task.gamma_seed


def test_callbacks_of_a_task_that_leave_out_the_librarys_are_refused():
    class Alone(Denoising):
        def configure_callbacks(self):
            return [Logged()]

    class Beside(Denoising):
        def configure_callbacks(self):
            return [*super().configure_callbacks(), Logged()]

    with pytest.raises(UsageError, match=r"Alone.configure_callbacks leaves out .* super\(\)"):
        trainer().validate(Alone(nn.Linear(4, 4), Uniform(0, 1)), loader(), verbose=False)
    t = trainer()
    for _ in range(2):  # of one trainer: nothing is added twice
        (logged,) = t.validate(Beside(nn.Linear(4, 4), Uniform(0, 1)), loader(), verbose=False)
        assert "val_mse" in logged


class Predicting(HyperLightningModule):
    """As the README's: it returns its prediction as it is."""

    def loss(self, batch, primary):
        noisy, clean = batch
        prediction = primary(noisy)
        return StepOutput(F.mse_loss(prediction, clean), prediction, {"target": [prediction * 2]})


@pytest.mark.parametrize("steps", [1, 3])
def test_a_task_that_returns_its_prediction_can_be_copied_after_a_fit(steps):
    task = Predicting(nn.Linear(4, 4), Uniform(0, 1))
    trainer(max_steps=steps).fit(task, loader(), loader())
    again = copy.deepcopy(task)
    assert torch.equal(again.latest.output.loss, task.latest.output.loss)
    assert task.latest.output is not None
    assert task.latest.output.prediction.grad_fn is None
    assert task.latest.output.target["target"][0].grad_fn is None
    torch.save(task.state_dict(), Path("weights.pt"))
