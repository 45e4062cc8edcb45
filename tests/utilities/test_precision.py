"""Every precision of the trainer: commands end well, and what they write is right."""

import csv
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml
from helpers import ROOT
from lightning.pytorch import Callback, Trainer
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanSquaredError, Metric

from mip_lightning import HyperModel, Uniform
from mip_lightning.callbacks import NiftiWriter
from mip_lightning.callbacks._files import legible
from mip_lightning.callbacks.nifti_writer import nifti
from mip_lightning.cli.main import main
from mip_lightning.core import StepOutput, Volume
from mip_lightning.core.module import HyperLightningModule
from mip_lightning.data import ImagePairs
from mip_lightning.data.subjects import Subject, Subjects, SubjectSource
from mip_lightning.diagnostics.weights import weight_statistics
from mip_lightning.errors import UsageError
from mip_lightning.hypernetworks import PrimaryAtGamma
from mip_lightning.hypernetworks.hypernetwork import HypernetworkConfig
from mip_lightning.networks import ConstantWidthUNet, MultilayerPerceptron
from mip_lightning.priors import (
    Categorical,
    EndPointOversampling,
    Joint,
    LogOddsUniform,
    Normal,
    Stratified,
)
from mip_lightning.tasks import BayesianClassification, Registration
from mip_lightning.trainer.trainer import HyperTrainer
from mip_lightning.utilities.norms import total_norm

CONF = ROOT / "tests" / "conf"
TASKS = ("quick", "registration", "scale_space", "classification")
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-true")
HALF = ("bf16-true", "16-true")

EVERY_CALLBACK = [
    "ChannelsLast",
    "CostCurve",
    {"class_path": "Distributions", "init_args": {"num_gammas": 2}},
    {"class_path": "ExampleFigures", "init_args": {"num_gammas": 2}},
    "GammaCurve",
    "GradientStats",
    "HoldMemory",
    "HyperModelSummary",
    {"class_path": "PredictedWeightStats", "init_args": {"grid_size": 2}},
    "RunProgressBar",
    {"class_path": "TrainingStability", "init_args": {"every_n_steps": 1}},
]
"""All callbacks; the command line adds those that write checkpoints and predictions."""

OF_TASKS = ("CostCurve", "ExampleFigures", "GammaCurve")
"""What differs between tasks in them."""


def rows(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def name_of(callback: Any) -> str:
    return callback if isinstance(callback, str) else callback["class_path"]


def configuration(task: str, precision: str, callbacks: list[Any]) -> str:
    """The smallest run of a task, as a file."""
    config = yaml.safe_load((CONF / f"{task}.yaml").read_text())
    config["model"]["init_args"]["test_grid_size"] = 4
    config["optimizer"]["init_args"]["eps"] = 1e-4  # 1e-8 is 0 in float16
    config["trainer"] |= {
        "precision": precision,
        "callbacks": callbacks,
        "max_epochs": 1,
        "limit_train_batches": 2,
        "num_sanity_val_steps": 0,
        "logger": False,  # TensorBoard takes as long for each figure again
    }
    for name in ("enable_progress_bar", "enable_model_summary"):
        config["trainer"].pop(name)
    if task == "classification":
        generator = np.random.default_rng(0)
        for number in range(10):
            for name in ("a", "b"):
                path = Path("images") / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(0, 255, (20, 18, 3), dtype=np.uint8)).save(path)
        config["data"]["init_args"]["data_dir"] = "images"
    Path("config.yaml").write_text(yaml.safe_dump(config))
    return "config.yaml"


def run_every_command(task: str, precision: str, callbacks: list[Any]) -> None:
    config = configuration(task, precision, callbacks)
    main(["fit", "--config", config, "--run_dir", "run"])
    given = ["--ckpt_path", "run/checkpoints/last.ckpt"]
    main(["validate", *given])
    main(["test", *given, "--run_dir", "t"])
    for name in ("p.csv", "p.pt") if task == "quick" else ("p.csv",):
        path = ["--predictions.path", name]
        main(["predict", *given, "--gamma", "0.3", "--run_dir", name, *path])
    main(["select-gamma", *given, "--grid_size", "2", "--tolerance", "0.9"])
    main(["export", *given, "--gamma", "0.3"])
    assert len(list(Path().glob("p.csv/**/*.nii.gz"))) + len(list(Path().glob("p.*/p.*"))) > 0
    assert Path("run/select-gamma/selected_gamma.yaml").is_file()
    assert len(list(Path("run/export").glob("*.pt"))) == 1
    assert {"test_gamma_curve.png", "test_cost_curve.png"} <= {p.name for p in Path("t").iterdir()}
    end = 1.0 if task in ("quick", "registration") else 0.5
    for table in ("test_gamma_curve", "test_cost_curve"):
        curve = rows(f"t/{table}.csv")
        gammas = [float(row["gamma"]) for row in curve]
        assert gammas == pytest.approx([0.0, end / 3, 2 * end / 3, end], rel=1e-6)
        assert all(np.isfinite(float(value)) for row in curve for value in row.values())


@pytest.mark.parametrize(
    "task", ["quick", *(pytest.param(t, marks=pytest.mark.slow) for t in TASKS if t != "quick")]
)
def test_every_command_ends_well_in_bfloat16(task):
    everything = [c for c in EVERY_CALLBACK if task == "quick" or name_of(c) in OF_TASKS]
    run_every_command(task, "bf16-true", everything)
    if task == "quick":
        stems = ("distributions_after", "gradient_stats", "predicted_weight_stats")
        assert all(Path(f"run/{stem}.png").is_file() for stem in stems)
        assert Path("run/val_gamma_curve.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_command_ends_well_with_every_callback_in(precision, task):
    run_every_command(task, precision, EVERY_CALLBACK)


# --- what is measured ---


def trainer(precision: str, **options: Any) -> Trainer:
    return Trainer(
        precision=precision, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, **options,
    )  # fmt: skip


def classifier() -> BayesianClassification:
    return BayesianClassification(
        MultilayerPerceptron(8, 3, hidden_sizes=[16]),
        Uniform(),
        hypernetwork=HypernetworkConfig([4, 8]),
        test_grid_size=3,
        ensemble_size=2,
    )


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Guo et al., Equation 3, in float64."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    bins = np.ceil(confidence * 15)
    return sum(
        abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean()
        for b in np.unique(bins)
    )


@pytest.mark.parametrize("precision", HALF)
def test_metrics_are_over_all_samples_in_half_precision(precision):
    # 1,000 samples: a sum of ones in bfloat16 ends at 256.
    task = classifier()
    images, labels = torch.randn(1000, 8), torch.randint(0, 3, (1000,))
    loader = DataLoader(TensorDataset(images, labels), 100)
    (found,) = trainer(precision).test(task, loader, verbose=False)
    dtype = {"bf16-true": torch.bfloat16, "16-true": torch.float16}[precision]
    assert {p.dtype for p in task.parameters()} == {dtype}
    swept, average = [], 0.0
    with torch.no_grad():
        for gammas in ([0.0], [0.5], [1.0], *task.ensemble_gamma.tolist()):
            logits = torch.cat(
                [task.model(x.to(dtype), torch.tensor(gammas)) for x in images.split(100)]
            )
            probabilities = logits.double().softmax(-1).numpy()
            swept.append(probabilities)
    average = np.mean(swept[3:], axis=0)

    def measures(p: np.ndarray) -> list[float]:
        nll = -np.log(p[np.arange(1000), labels.numpy()]).mean()
        accuracy = (p.argmax(1) == labels.numpy()).mean()
        return [nll, accuracy, calibration_error(p, labels.numpy()), nll]

    names = ("nll", "accuracy", "calibration_error", "loss")
    for name, of_gammas in zip(names, zip(*map(measures, swept[:3]), strict=True), strict=True):
        assert found[f"test_{name}"] == pytest.approx(np.mean(of_gammas), rel=1e-5), name
    for name, value in zip(names[:3], measures(average), strict=False):
        assert found[f"test_{name}_ensemble"] == pytest.approx(value, rel=1e-5), name
    entropy = -(average * np.log(average)).sum(1).mean()
    assert found["test_predictive_entropy_ensemble"] == pytest.approx(entropy, rel=1e-5)


class ShareOfPositive(Metric):
    """A quotient of integers, which is of the default type."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0))

    def update(self, prediction: torch.Tensor, target: torch.Tensor) -> None:
        self.total += (target > 0).sum() / target.numel()

    def compute(self) -> torch.Tensor:
        return self.total


class Regression(HyperLightningModule):
    def loss(self, batch: Any, primary: PrimaryAtGamma) -> StepOutput:
        x, y = batch
        prediction = primary(x)
        return StepOutput(nn.functional.mse_loss(prediction, y), prediction.detach(), y)

    def configure_metrics(self) -> dict[str, Metric]:
        return {"mse": MeanSquaredError(), "share": ShareOfPositive()}


@pytest.mark.parametrize("precision", HALF)
def test_metrics_of_a_users_task_are_computed_in_float32(precision):
    task, (x, y) = Regression(nn.Linear(8, 1), Uniform(), test_grid_size=1), torch.randn(2, 700, 8)
    y = y[:, :1]
    loader = DataLoader(TensorDataset(x, y), 700)
    (found,) = trainer(precision).test(task, loader, verbose=False)
    dtype = next(task.parameters()).dtype
    with torch.no_grad():
        prediction = task.model(x.to(dtype), torch.tensor([0.5])).double()
    expected = (prediction - y.to(dtype)).square().mean().item()
    assert found["test_mse"] == pytest.approx(expected, rel=1e-5)
    assert found["test_share"] == pytest.approx((y > 0).double().mean().item(), rel=1e-6)


def subject(name: str) -> Subject:
    """A wide image of strips, at a place that half precision does not know."""
    labels = torch.zeros(1, 8, 300, dtype=torch.uint8)
    labels[..., torch.randint(0, 300, (60,))] = 1
    affine = torch.diag(torch.tensor([1.1, 0.7, 1.3, 1.0]))
    affine[:3, 3] = torch.tensor([-130.3, 257.1, 0.1])
    return Subject(name, name, "", labels.float(), labels, affine)


class Strips(SubjectSource):
    """A source of such subjects."""

    def load(self) -> Subjects:
        torch.manual_seed(0)
        return Subjects([subject(name) for name in "abcdefgh"], {1: "strip"})


def registration() -> Registration:
    return Registration(
        ConstantWidthUNet(features=4, levels=2),
        hypernetwork=HypernetworkConfig([4, 8]),
        test_grid_size=2,
        divisible_by=4,
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_dice_before_registration_does_not_depend_on_the_precision(precision):
    data = ImagePairs(Strips(), evaluation_pairs=2, train_fraction=0.5, validation_fraction=0.25)
    (found,) = trainer(precision).test(registration(), data, verbose=False)
    expected = []
    for pair in data.test_dataloader():
        moving, fixed = pair["moving_labels"].numpy() == 1, pair["fixed_labels"].numpy() == 1
        expected.append(2 * (moving & fixed).sum() / (moving.sum() + fixed.sum()))
    assert found["test_dice_before"] == pytest.approx(np.mean(expected), rel=1e-6)


@pytest.mark.parametrize("precision", HALF)
def test_files_of_volumes_are_where_the_image_is(precision, tmp_path):
    data = ImagePairs(Strips(), evaluation_pairs=1, train_fraction=0.5, validation_fraction=0.25)
    task = registration()
    HyperTrainer(
        precision=precision, accelerator="cpu", logger=False, enable_progress_bar=False,
        callbacks=[NiftiWriter()], default_root_dir=tmp_path,
    ).predict(task, datamodule=data, gamma=0.3)  # fmt: skip
    files = list(tmp_path.rglob("*.nii.gz"))
    assert {path.name for path in files} == {
        f"gamma_0.3_{name}.nii.gz" for name in ("image", "labels", "displacement")
    }
    for path in files:
        affine = nibabel.load(path).affine
        assert np.array_equal(affine, subject("a").affine.double().numpy())


def test_an_affine_that_the_precision_has_rounded_is_refused():
    affine = torch.eye(4).bfloat16()
    with pytest.raises(UsageError, match=r"affine of b/x: it is in torch.bfloat16.*32-true"):
        nifti(Volume("b/x", torch.zeros(2, 2), affine))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_in_half_precision_are_written_as_they_are(dtype):
    values = torch.randn(4, 5).to(dtype)
    assert legible(values).dtype == torch.float32
    assert legible(values).tolist() == values.tolist()
    image = nifti(Volume("x", values, torch.eye(4)))
    assert np.asarray(image.dataobj)[..., 0].tolist() == values.tolist()
    assert legible(torch.tensor([2**40 + 1])).item() == 2**40 + 1


# --- gamma ---


PRIORS = [
    Uniform(0.1, 0.3),
    Normal(),
    EndPointOversampling(Uniform(0.1, 0.3)),
    Stratified(Normal()),
    Joint({"a": LogOddsUniform(0.001, 0.999), "b": Categorical([str(k) for k in range(300)])}),
]


@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: type(prior).__name__)
def test_gamma_is_the_same_whatever_the_default_type_is(prior):
    def everything() -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        given = prior.check([0.3] * prior.dim) if prior.dim == 1 else prior.grid(1)
        return [prior.sample(40, generator), prior.grid(7), prior.grid(1), given]

    expected = everything()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = everything()
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == torch.float32


@pytest.mark.parametrize("precision", PRECISIONS[2:])
def test_training_draws_the_same_gamma_in_each_precision(precision):
    def drawn(precision: str) -> list[float]:
        torch.manual_seed(3)
        task, seen = classifier(), []

        class Watch(Callback):
            def on_train_batch_end(self, trainer, module, *args):
                seen.append(module.latest.gamma)
                assert module.latest.gamma.dtype == torch.float32

        loader = DataLoader(TensorDataset(torch.randn(8, 8), torch.zeros(8).long()), 2)
        trainer(precision, max_epochs=1, callbacks=[Watch()]).fit(task, loader, loader)
        return torch.cat(seen).flatten().tolist()

    assert drawn(precision) == drawn("32-true")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gamma_is_encoded_before_it_is_rounded(dtype):
    primary, prior = nn.Linear(3, 2), LogOddsUniform(1e-5, 1 - 1e-5)
    model = HyperModel(primary, prior, hypernetwork=HypernetworkConfig([4, 5])).to(dtype)
    seen = []
    model.hypernetwork.trunk.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for gamma in prior.grid(9):  # in half precision the last ones are 1, of infinite log-odds
        assert all(tensor.isfinite().all() for tensor in model.at(gamma).theta.values())
    angle = torch.linspace(0, np.pi / 2, 9, dtype=torch.float64)
    expected = torch.stack([angle.cos(), angle.sin()], dim=1)
    torch.testing.assert_close(torch.cat(seen).double(), expected, atol=2e-3, rtol=4e-3)


def test_each_of_many_categories_has_weights_of_its_own_in_bfloat16():
    prior = Categorical([str(k) for k in range(300)])
    model = HyperModel(nn.Linear(3, 2), prior, hypernetwork=HypernetworkConfig([4, 5])).bfloat16()
    vectors = model.hypernetwork.encoding.vectors
    seen = []
    model.hypernetwork.trunk.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        assert model.at(torch.tensor([257.0])).theta
    assert torch.equal(seen[0][0], nn.functional.normalize(vectors[257], dim=0))


# --- what callbacks compute ---


def test_statistics_of_weights_in_half_precision_are_those_of_float64():
    model = HyperModel(nn.Linear(30, 20), Uniform(), hypernetwork=HypernetworkConfig([4, 5]))
    model = model.bfloat16()
    grid = Uniform().grid(3)
    found = weight_statistics(model, grid)["weight"]
    for k, gamma in enumerate(grid):
        weight = model.at(gamma).theta["weight"].double()
        assert found.std[k].item() == pytest.approx(weight.std(correction=0).item(), rel=1e-6)
        assert found.norm[k].item() == pytest.approx(weight.norm().item(), rel=1e-6)


def test_a_norm_that_float16_does_not_know_is_finite():
    gradients = [torch.full((100,), 6e4, dtype=torch.float16), torch.ones(3, dtype=torch.float16)]
    assert total_norm(gradients).item() == pytest.approx((100 * 6e4**2 + 3) ** 0.5, rel=1e-6)
