"""Gamma that comes with the sample: in training, in evaluation, in configurations.

The truth is the primary with the weights of each sample's own gamma, one sample after another.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers import rows, trainer
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import MeanSquaredError

from mip_lightning import (
    Categorical,
    DirectionEncoding,
    FromBatch,
    GammaSource,
    HyperLightningModule,
    HypernetworkConfig,
    Normal,
    StepOutput,
    Uniform,
    UsageError,
)
from mip_lightning.callbacks import GammaCurve
from mip_lightning.core.gamma_source import SeenOutside
from mip_lightning.trainer import HyperTrainer

SPACINGS = torch.tensor([0.5, 3.0, 1.2, 0.6, 2.9, 0.5, 1.1, 3.0, 0.5, 1.0])


def samples() -> list[dict[str, Tensor]]:
    x = torch.rand(10, 4, generator=torch.Generator().manual_seed(0))
    return [{"x": row, "spacing": spacing} for row, spacing in zip(x, SPACINGS, strict=True)]


class Spaced(HyperLightningModule):
    def loss(self, batch, primary):
        prediction = primary(batch["x"])
        return StepOutput(F.mse_loss(prediction, batch["x"]), prediction.detach(), batch["x"])

    def configure_metrics(self):
        return {"mse": MeanSquaredError()}


def spaced(source: GammaSource | None = None, **options) -> Spaced:
    source = source or FromBatch("spacing")
    return Spaced(nn.Linear(4, 4), Uniform(0.5, 3.0), gamma_source=source, **options)


def errors(module: HyperLightningModule) -> Tensor:
    """The mean square error of each sample at its own gamma."""
    primary = nn.Linear(4, 4)
    found = []
    with torch.no_grad():
        for sample in samples():
            theta = module.model.at(sample["spacing"].reshape(1)).theta
            y = functional_call(primary, theta, (sample["x"][None],))
            found.append(F.mse_loss(y[0], sample["x"]))
    return torch.stack(found)


def test_training_takes_the_gamma_of_each_sample():
    module = spaced()
    data = DataLoader(samples(), 5)
    trainer(limit_train_batches=1).fit(module, data, data)
    torch.testing.assert_close(module.latest.gamma, SPACINGS[:5, None])


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_evaluation_is_of_each_sample_at_its_own_gamma(batch_size, tmp_path):
    module = spaced(validation_grid_size=6)
    run = trainer(default_root_dir=tmp_path, callbacks=[GammaCurve()])
    run.validate(module, DataLoader(samples(), batch_size), verbose=False)
    expected, result = errors(module), module.evaluation("val").result
    for name in ("val_loss", "val_mse", "val_mse_best"):
        torch.testing.assert_close(run.callback_metrics[name], expected.mean())
    assert "val_mse_best_gamma" not in run.callback_metrics
    nearest = (SPACINGS[:, None] - torch.linspace(0.5, 3.0, 6)).abs().argmin(dim=1)
    for index in range(6):
        own = expected[nearest == index]
        found = result.curves["mse"].values[index]
        torch.testing.assert_close(found, own.mean(), equal_nan=True)  # of none it is NaN
    assert result.curves["mse"].best is None
    (path,) = tmp_path.rglob("val_gamma_curve.csv")
    assert [float(row["gamma"]) for row in rows(path)] == torch.linspace(0.5, 3, 6).tolist()


def test_the_grid_is_swept_where_it_is_asked_for():
    module = spaced(FromBatch("spacing", sweeps_grid=True))
    trainer().validate(module, DataLoader(samples(), 5), verbose=False)
    result = module.evaluation("val").result
    assert result.overall is None
    assert result.curves["mse"].best is not None


def test_one_gamma_for_a_whole_batch():
    class OfBatch(GammaSource):
        def __call__(self, batch):
            return batch["spacing"].mean().reshape(1)

    module = spaced(OfBatch())
    data = DataLoader(samples(), 5)
    trainer().fit(module, data, data)
    torch.testing.assert_close(module.latest.gamma, SPACINGS[5:].mean().reshape(1, 1))


def test_a_learned_vector_for_each_annotator():
    """An embedding table is the encoding of a category: one learned vector a key, of norm 1."""

    class Annotated(Spaced):
        def loss(self, batch, primary):
            target = batch["x"] * (1 + batch["who"][:, None])
            return F.mse_loss(primary(batch["x"]), target)

        def configure_metrics(self):
            return {}

    torch.manual_seed(0)
    data = DataLoader([{**s, "who": n % 2} for n, s in enumerate(samples())], 5)
    module = Annotated(nn.Linear(4, 4), Categorical(["ann", "bob"]), gamma_source=FromBatch("who"))
    before = module.model.hypernetwork.encoding.vectors.clone()
    trainer(max_epochs=2).fit(module, data, data)
    assert set(module.latest.gamma.flatten().tolist()) == {0.0, 1.0}
    assert (module.model.hypernetwork.encoding.vectors != before).any(dim=1).all()
    assert not module.evaluation("val").result.curves["loss"].values.isnan().any()


def test_a_vector_without_a_range_is_encoded_by_its_direction():
    class Told(Spaced):
        def loss(self, batch, primary):
            return primary(batch.x).square().mean()

        def configure_metrics(self):
            return {}

    @dataclass
    class Batch:
        x: Tensor
        text: Tensor

    batches = [Batch(torch.rand(4, 4), 100 * torch.randn(4, 3)) for _ in range(2)]
    data = DataLoader(batches, batch_size=None)
    module = Told(
        nn.Linear(4, 4),
        Normal(dim=3),
        hypernetwork=HypernetworkConfig(encoding=DirectionEncoding),
        gamma_source=FromBatch("text"),
    )
    trainer().fit(module, data, data)
    torch.testing.assert_close(module.latest.gamma, batches[1].text)
    encoded = module.model.hypernetwork.encoding(module.latest.gamma)
    torch.testing.assert_close(encoded.norm(dim=1), torch.ones(4))


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("gap", r"gamma_source: a batch of type dict has no 'gap': it has 'x', 'spacing'"),
        (0, "a batch of type dict has no 0"),
        ("x", r"gamma has shape \(5, 4\) for 5 samples, and .* give \(5, 1\) or \(1,\)"),
    ],
)
def test_what_a_source_cannot_tell_is_refused(key, says):
    with pytest.raises(UsageError, match=says):
        trainer().fit(spaced(FromBatch(key)), DataLoader(samples(), 5), DataLoader(samples(), 5))


def test_a_gamma_outside_the_range_is_refused():
    data = DataLoader([{**samples()[0], "spacing": torch.tensor(7.0)}] * 2, 2)
    with pytest.raises(UsageError, match=r"gamma\[0, 0\] is 7, outside"):
        trainer(num_sanity_val_steps=0).fit(spaced(), data, data)
    with pytest.raises(UsageError, match="is 7, outside"):
        trainer().validate(spaced(), data)


def test_numbers_of_draws_beside_a_source_are_refused():
    with pytest.raises(UsageError, match="draws_per_batch=2: gamma comes from gamma_source"):
        spaced(draws_per_batch=2)


def test_values_that_lie_on_a_device_are_looked_at_later():
    seen, prior = SeenOutside(), Uniform(0.5, 3.0)
    seen.update(torch.tensor([[1.0], [2.0]]), prior)
    seen.check()
    seen.update(torch.tensor([[7.0]]), prior)
    seen.update(torch.tensor([[1.0]]), prior)
    with pytest.raises(UsageError, match="gamma_source told a gamma outside the support of Unif"):
        seen.check()
    seen.check()
    seen.update(torch.tensor([[torch.nan]]), prior)
    with pytest.raises(UsageError, match="outside the support"):
        seen.check()


def test_a_gamma_that_comes_with_the_sample_is_not_selected(tmp_path):
    data = LightningDataModule()
    with pytest.raises(UsageError, match="gamma comes with each sample"):
        HyperTrainer(default_root_dir=tmp_path, logger=False).select_gamma(spaced(), data)


def test_the_installed_command_takes_a_source_from_a_configuration(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "own.yaml").write_text(CONFIG)
    run_in(tmp_path, "fit --config own.yaml")
    (best,) = tmp_path.glob("runs/own/version_0/checkpoints/best.ckpt")
    said = run_in(tmp_path, f"test --ckpt_path {best}")
    assert "test_loss" in said
    table = rows(next(tmp_path.rglob("test_gamma_curve.csv")))
    assert any(row["loss"] == "nan" for row in table)  # no sample has such a spacing


OWN = """
import torch
from torch.utils.data import DataLoader
from lightning.pytorch import LightningDataModule
from mip_lightning import HyperLightningModule


class Spaced(HyperLightningModule):
    def loss(self, batch, primary):
        return (primary(batch["x"]) - batch["x"]).square().mean()


class Data(LightningDataModule):
    def train_dataloader(self):
        spacings = [0.5, 1.0, 3.0] * 8
        return DataLoader([{"x": torch.rand(4), "spacing": s} for s in spacings], 6)

    val_dataloader = test_dataloader = train_dataloader
"""

CONFIG = """
run_name: own
model:
  class_path: own.Spaced
  init_args:
    primary: {class_path: torch.nn.Linear, init_args: {in_features: 4, out_features: 4}}
    prior: {class_path: Uniform, init_args: {low: 0.5, high: 3.0}}
    gamma_source: {class_path: FromBatch, init_args: {key: spacing}}
data: own.Data
trainer: {max_epochs: 1, accelerator: cpu}
"""


def run_in(folder: Path, arguments: str) -> str:
    found = subprocess.run(
        [str(Path(sys.executable).parent / "mip-lightning"), *arguments.split()],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout
