"""Batches and loaders of other people's tasks, and Lightning's tuners.

The truth of an evaluation is a loop over the samples with the primary's weights.
"""

import pytest
import torch
from helpers import LossAlone, loader, trainer
from lightning.pytorch.callbacks import LearningRateFinder, ModelPruning
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import DataLoader

from mip_lightning import HyperLightningModule, Uniform, UsageError
from mip_lightning.core.batches import batch_size, take_samples


def make(kind: type[HyperLightningModule] = LossAlone, **options) -> HyperLightningModule:
    return kind(nn.Linear(4, 4), Uniform(), **options)


def losses(module: HyperLightningModule, samples: int) -> torch.Tensor:
    """The loss at each gamma of the grid, over the samples of ``loader``."""
    x = torch.cat([batch[0] for batch in loader(samples)])
    grid = module.evaluation("val").grid
    with torch.no_grad():
        return torch.stack(
            [
                F.mse_loss(functional_call(module.model.primary, module.model.at(g).theta, (x,)), x)
                for g in grid
            ]
        )


def test_two_validation_loaders_are_measured_each_by_itself():
    module = make()
    run = trainer()
    run.fit(module, loader(), [loader(), loader(12)])
    for index, samples in enumerate((32, 12)):
        found = module.evaluation("val", index).result.curves["loss"]
        torch.testing.assert_close(found.values, losses(module, samples))
        name = f"val_loss/loader_{index}" if index else "val_loss"
        torch.testing.assert_close(run.callback_metrics[name], found.mean)
    run.validate(module, loader(), verbose=False)
    assert "val_loss" in run.callback_metrics
    assert "val_loss/loader_1" not in run.callback_metrics
    results = run.test(module, [loader(12), loader(32)], verbose=False)
    assert results[0]["test_loss"] != results[0]["test_loss/loader_1"]


@pytest.mark.parametrize("mode", ["min_size", "sequential"])
def test_combined_loaders_are_taken_as_lightning_gives_them(mode):
    class Combined(HyperLightningModule):
        def loss(self, batch, primary):
            x, y = batch["first"] if isinstance(batch, dict) else batch
            return F.mse_loss(primary(x), y)

    loaders = CombinedLoader({"first": loader(), "second": loader(32)}, mode)
    module = make(Combined)
    trainer().fit(module, loader(), loaders)
    found = module.evaluation("val").result.curves["loss"].values
    torch.testing.assert_close(found, losses(module, 32))


class Opaque:
    """A batch of a class of the user's own."""

    def __init__(self, x):
        self.x = x


class Counted:
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count


def test_batches_without_a_tensor_on_top_are_counted_and_trained_on():
    packed = nn.utils.rnn.pack_sequence([torch.rand(2, 3), torch.rand(1, 3)])
    sizes = {2: packed, 5: Opaque(torch.rand(5, 2)), 3: ["a", "b", "c"], 7: Counted(7)}
    assert [batch_size(batch) for batch in sizes.values()] == list(sizes)
    assert batch_size([torch.tensor(1.0), torch.rand(4, 2)]) == 4
    assert batch_size({"meta": {"id": 3}, "images": [torch.rand(6, 2)]}) == 6
    with pytest.raises(UsageError, match="a batch of type object holds no tensor"):
        batch_size(object())
    first = take_samples(packed, slice(1), 2)
    torch.testing.assert_close(
        nn.utils.rnn.unpack_sequence(first)[0], nn.utils.rnn.unpack_sequence(packed)[0]
    )

    class OfOpaque(HyperLightningModule):
        def loss(self, batch, primary):
            return primary(batch.x).square().mean()

    batches = DataLoader(
        torch.rand(8, 4), 4, collate_fn=lambda samples: Opaque(torch.stack(samples))
    )
    module = make(OfOpaque, draws_per_batch="one_per_sample")
    trainer().fit(module, batches, batches)
    assert module.latest.gamma.shape == (4, 1)


@pytest.mark.parametrize("as_callback", [True, False])
def test_the_learning_rate_finder_sets_the_rate(as_callback, tmp_path):
    """Its trial takes all callbacks away, and validates."""
    module = make(group_options={"theta0": {"lr": 1e-5}})
    found = []
    if as_callback:
        finder = LearningRateFinder(num_training_steps=20, early_stop_threshold=None)
        run = trainer(max_epochs=10, callbacks=[finder], default_root_dir=tmp_path)
        run.fit(module, loader(), loader())
        found.append(finder.optimal_lr.suggestion())
    else:
        run = trainer(max_epochs=10, default_root_dir=tmp_path)
        options = {"num_training": 20, "early_stop_threshold": None}
        found.append(Tuner(run).lr_find(module, loader(), loader(), **options).suggestion())
        run.fit(module, loader(), loader())
    assert module.learning_rate == found[0] != 3e-4
    rates = {group["name"]: group["lr"] for group in run.optimizers[0].param_groups}
    assert rates["head"] == found[0]
    assert rates["theta0"] == 1e-5
    assert module.evaluation("val").result is not None


def test_pruning_of_a_predicted_weight_is_refused_by_name():
    module = make()
    pruning = ModelPruning(
        "l1_unstructured", parameters_to_prune=[(module.model.primary, "weight")], amount=0.5
    )
    with pytest.raises(UsageError, match=r"primary: weight is not a parameter of Linear any more"):
        trainer(max_epochs=2, callbacks=[pruning]).fit(module, loader(), loader())
