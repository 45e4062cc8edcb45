import csv
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from monai.losses import (
    BendingEnergyLoss,
    GlobalMutualInformationLoss,
    LocalNormalizedCrossCorrelationLoss,
)
from monai.networks.nets import BasicUNet, VoxelMorphUNet
from torch import nn

from mip_lightning import (
    EndPointOversampling,
    HypernetworkConfig,
    Normal,
    ThetaConfig,
    Uniform,
    UsageError,
)
from mip_lightning.cli import main
from mip_lightning.networks import ConstantWidthUNet
from mip_lightning.tasks import (
    Registration,
    SquaredError,
    SquaredGradientPenalty,
    StationaryVelocity,
    TotalVariationPenalty,
)

CONFIG = ROOT / "tests" / "conf" / "registration.yaml"


def unet(spatial_dims: int = 2, **options) -> ConstantWidthUNet:
    return ConstantWidthUNet(2, spatial_dims, spatial_dims, features=4, levels=3, **options)


def make(primary: nn.Module | None = None, **options) -> Registration:
    return Registration(
        unet() if primary is None else primary,
        hypernetwork=HypernetworkConfig(hidden_sizes=(4, 8)),
        **{"divisible_by": 4, **options},
    )


def pair(size: tuple[int, ...], batch: int = 1) -> dict[str, torch.Tensor]:
    return {
        "moving": torch.rand(batch, 1, *size),
        "fixed": torch.rand(batch, 1, *size),
        "moving_labels": torch.randint(0, 3, (batch, 1, *size), dtype=torch.uint8),
        "fixed_labels": torch.randint(0, 3, (batch, 1, *size), dtype=torch.uint8),
    }


def resting(**options) -> Registration:
    """A task whose network gives no flow, at any gamma."""
    network = unet()
    nn.init.zeros_(network.output.weight)
    theta = ThetaConfig(predicted=["encoder.0.0.weight"])
    return make(network, theta=theta, **options)


def test_gamma_weighs_similarity_against_regularization():
    task, batch, gamma = make(), pair((8, 12)), torch.tensor([[0.25]])
    displacement = task.deformed(batch, gamma).displacement
    assert displacement.abs().max() > 0
    similarity = SquaredError()(task.warping(batch["moving"], displacement), batch["fixed"])
    regularization = TotalVariationPenalty()(displacement)
    found = task.evaluate_at(batch, gamma).loss
    torch.testing.assert_close(found, 0.75 * similarity + 0.25 * regularization)


@pytest.mark.parametrize("gamma", [0.0, 0.25, 1.0])
def test_what_does_not_move_costs_its_dissimilarity(gamma):
    batch = pair((8, 12))
    dissimilarity = nn.functional.mse_loss(batch["moving"], batch["fixed"]) / 0.05**2
    found = resting().evaluate_at(batch, torch.tensor([[gamma]])).loss
    torch.testing.assert_close(found, (1 - gamma) * dissimilarity)


# MONAI 1.6 indexes in a way that torch deprecates.
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence for multidimensional indexing")
@pytest.mark.parametrize("size", [(8, 12), (8, 8, 12)])
@pytest.mark.parametrize(
    "similarity",
    [
        SquaredError(0.1),
        LocalNormalizedCrossCorrelationLoss(spatial_dims=2, kernel_size=3),
        GlobalMutualInformationLoss(),
    ],
)
@pytest.mark.parametrize("regularization", [SquaredGradientPenalty(), BendingEnergyLoss()])
def test_the_loss_of_several_draws_is_the_mean_of_their_own(size, similarity, regularization):
    if isinstance(similarity, LocalNormalizedCrossCorrelationLoss):
        similarity = LocalNormalizedCrossCorrelationLoss(spatial_dims=len(size), kernel_size=3)
    task = make(unet(len(size)), similarity=similarity, regularization=regularization)
    batch, gamma = pair(size, batch=4), torch.tensor([[0.1], [0.8]])
    halves = [
        {name: values[part] for name, values in batch.items()} for part in (slice(2), slice(2, 4))
    ]
    each = [task.evaluate_at(half, g).loss for half, g in zip(halves, gamma.split(1), strict=True)]
    torch.testing.assert_close(task.evaluate_at(batch, gamma).loss, torch.stack(each).mean())


@pytest.mark.parametrize(
    ("size", "network"),
    [
        ((9, 14), unet()),
        ((17, 30), BasicUNet(2, 2, 2, features=(4, 4, 4, 4, 4, 4))),
        ((9, 10, 11), unet(3)),
        (
            (17, 10),
            VoxelMorphUNet(2, 2, 4, channels=(4, 4, 4, 4), final_conv_channels=(4,)),
        ),
    ],
)
def test_images_of_odd_sizes_are_padded_for_the_network_and_the_flow_is_cropped(size, network):
    task = make(network, divisible_by=16).train()
    batch = pair(size, batch=2)
    output = task.loss(batch, torch.tensor([[0.5]]))
    assert output.prediction.shape == (2, len(size), *size)
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in task.parameters() if p.grad is not None)


@pytest.mark.parametrize("deformation", [None, StationaryVelocity()])
def test_half_precision_of_the_network_leaves_the_positions_of_voxels_exact(deformation):
    task, batch = resting(deformation=deformation), pair((8, 600))
    with torch.autocast("cpu", torch.bfloat16):
        half = task.evaluate_at(batch, torch.tensor([[0.0]]))
    assert half.prediction.dtype == torch.float32
    whole = task.evaluate_at(batch, torch.tensor([[0.0]]))
    torch.testing.assert_close(half.loss, whole.loss)
    images = {"moving": batch["moving"], "fixed": batch["moving"]}
    with torch.autocast("cpu", torch.bfloat16):
        assert task.evaluate_at(images, torch.tensor([[0.0]])).loss < 1e-6


def test_padding_is_symmetric():
    seen = []

    class Seeing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(2, 2, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return self.convolution(images)

    task, batch = make(Seeing(), divisible_by=4), pair((5, 8))
    task.flow(batch, torch.tensor([[0.5]]))
    assert seen[0].shape == (1, 2, 8, 8)
    torch.testing.assert_close(seen[0][:, :1, 1:6], batch["moving"])
    assert seen[0][:, :, 0].abs().sum() == seen[0][:, :, 6:].abs().sum() == 0


def test_a_bidirectional_loss_does_not_change_when_images_and_flow_are_exchanged():
    network = unet()
    task = make(network, deformation=StationaryVelocity(), bidirectional=True)
    batch, gamma = pair((8, 12)), torch.tensor([[0.0]])
    flow = 2 * torch.rand(1, 2, 8, 12)
    exchanged = {"moving": batch["fixed"], "fixed": batch["moving"]}
    task.flow = lambda batch, gamma: flow
    there = task.evaluate_at(batch, gamma).loss
    task.flow = lambda batch, gamma: -flow
    torch.testing.assert_close(task.evaluate_at(exchanged, gamma).loss, there)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prior": Normal()}, r"one dimension in \[0, 1\]"),
        ({"prior": Uniform(0, 2)}, r"one dimension in \[0, 1\]"),
        ({"prior": Uniform(0, 1, dim=2)}, "one dimension"),
        ({"divisible_by": 0}, "divisible_by=0"),
        ({"bidirectional": True}, "Displacement has no inverse"),
    ],
)
def test_impossible_options_are_named(options, says):
    with pytest.raises(UsageError, match=says):
        make(**options)


def test_a_network_that_gives_no_flow_is_named():
    task = make(ConstantWidthUNet(2, 3, 2, features=4, levels=3))
    with pytest.raises(UsageError, match=r"ConstantWidthUNet gives \(1, 3, 8, 12\).* 2 channels"):
        task.evaluate_at(pair((8, 12)), torch.tensor([[0.5]]))


@pytest.mark.parametrize(
    ("images", "says"),
    [(torch.rand(1, 2, 3, 8), "3 x 8"), (torch.rand(1, 2, 8, 8, 8), "spatial_dims=2")],
)
def test_images_that_the_unet_cannot_take_are_named(images, says):
    with pytest.raises(UsageError, match=says):
        unet()(images)
    with pytest.raises(UsageError, match="features=0"):
        ConstantWidthUNet(features=0)


@pytest.mark.parametrize("size", [(16, 16), (17, 23)])
def test_the_unet_has_the_papers_layers(size):
    network = ConstantWidthUNet()
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 2 * (5 + 4) + 1
    assert {c.out_channels for c in convolutions[:-1]} == {32}
    assert sum(p.numel() for p in network.parameters()) == 195_266  # by hand: see the comment
    # 2 -> 32: 608; nine of 32 -> 32: 9,248 each; four of 64 -> 32: 18,464; four of 32: 9,248; 578.
    assert 608 + 9 * 9_248 + 4 * (18_464 + 9_248) + 578 == 195_266
    assert network(torch.rand(1, 2, *size)).shape == (1, 2, *size)


def test_the_reference_is_made_of_parts_of_this_library_and_monai():
    task = make(
        VoxelMorphUNet(2, 2, 32, (16, 32, 32, 32, 32, 32), (16, 16)),
        prior=EndPointOversampling(Uniform(0, 1), 0.2),
        formulation="default",
        regularization=SquaredGradientPenalty(factor=2.0),
        deformation=StationaryVelocity(half_resolution=True),
        divisible_by=16,
    )
    assert task.evaluate_at(pair((16, 32)), torch.tensor([[0.5]])).loss.isfinite()


def rows(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("registration") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mip-lightning"])
        main(["fit", "--config", str(CONFIG), "--run_dir", str(folder)])
    return folder


@pytest.fixture
def checkpoint(fitted) -> str:
    return str(fitted / "checkpoints" / "best.ckpt")


def test_a_run_draws_registrations_and_logs_dice_beside_that_before(fitted):
    assert (fitted / "val_registration_6.png").stat().st_size > 10_000
    logged = rows(fitted / "csv" / "metrics.csv")
    last = next(row for row in reversed(logged) if row["val_dice"])
    assert 0.0 < float(last["val_dice_before"]) < 1.0
    assert 0.0 <= float(last["val_dice_best_gamma"]) <= 1.0
    assert float(last["val_dice_best"]) >= float(last["val_dice"])


def test_each_labels_dice_is_reported_with_its_best_gamma(checkpoint, tmp_path, capsys):
    main(["test", "--ckpt_path", checkpoint, "--run_dir", str(tmp_path / "t")])
    curve = rows(tmp_path / "t" / "test_gamma_curve.csv")
    assert [row["gamma"] for row in curve] == ["0.0", "0.5", "1.0"]
    labels = rows(tmp_path / "t" / "test_dice_by_label.csv")
    assert len(labels) == 4 * 3
    for label in "1234":
        mine = [row for row in labels if row["label"] == label]
        best = max(mine, key=lambda row: float(row["dice"]))
        assert [row["best"] for row in mine].count("1") == 1
        assert best["best"] == "1"
    assert {row["name"] for row in labels} >= {"Left-Grey-Matter", "Right-White-Matter"}
    assert (tmp_path / "t" / "test_dice_by_label.png").is_file()
    assert (tmp_path / "t" / "test_registration.png").is_file()


def test_a_gamma_is_selected_and_then_predicted_and_exported_with(checkpoint, fitted, tmp_path):
    selected = fitted / "select-gamma" / "selected_gamma.yaml"
    main(["select-gamma", "--ckpt_path", checkpoint, "--grid_size", "3"])
    content = yaml.safe_load(selected.read_text())
    assert content["by"] == "all"
    assert 0.0 <= content["gamma"] <= 1.0
    assert content["metric"] == "dice"
    main(
        [
            "export",
            "--ckpt_path",
            checkpoint,
            "--gamma",
            str(selected),
            "--run_dir",
            str(tmp_path / "e"),
        ]
    )
    (file,) = (tmp_path / "e").glob("ConstantWidthUNet_gamma_*.pt")
    assert unet().load_state_dict(torch.load(file, weights_only=True))
    main(
        [
            "predict",
            "--ckpt_path",
            checkpoint,
            "--gamma",
            str(selected),
            "--run_dir",
            str(tmp_path / "p"),
        ]
    )
    assert len(list((tmp_path / "p").glob("brain_*_to_brain_*/gamma_*_image.nii.gz"))) == 2


def test_a_gamma_is_selected_for_each_label_and_each_subject(checkpoint, fitted, capsys):
    for by, names in (("label", 4), ("subject", 2)):
        path = f"by_{by}.yaml"
        options = ["--by", by, "--path", path, "--grid_size", "2", "--tolerance", "0.5"]
        main(["select-gamma", "--ckpt_path", checkpoint, "--run_dir", str(fitted / by), *options])
        content = yaml.safe_load((fitted / by / path).read_text())
        assert len(content["gamma"]) == len(content["value"]) == names
        assert ("Left-Grey-Matter" in content["gamma"]) == (by == "label")
    chosen = str(fitted / "subject" / "by_subject.yaml")
    with pytest.raises(SystemExit, match="was selected on other subjects"):
        main(["predict", "--ckpt_path", checkpoint, "--gamma", chosen])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--metric", "speed"], "metric='speed': Registration has dice"),
        (["--metric", "gradient_magnitude"], "has no better end"),
        (["--metric", "folded_share", "--by", "label"], "does not tell labels apart"),
        (["--grid_size", "1"], "grid_size=1"),
        (["--tolerance", "0"], "tolerance=0"),
    ],
)
def test_what_cannot_be_selected_is_refused(options, says, checkpoint, tmp_path):
    with pytest.raises(SystemExit, match=says):
        main(
            ["select-gamma", "--ckpt_path", checkpoint, "--run_dir", str(tmp_path / "s"), *options]
        )


def test_predictions_are_nifti_files_in_the_space_of_the_fixed_image(checkpoint, tmp_path, capsys):
    main(
        [
            "predict",
            "--ckpt_path",
            checkpoint,
            "--gamma",
            "[0.0, 0.75]",
            "--run_dir",
            str(tmp_path / "p"),
        ]
    )
    assert len(list((tmp_path / "p").glob("*/*.nii.gz"))) == 2 * 2 * 3
    folder = sorted((tmp_path / "p").glob("brain_*"))[0]
    image, labels, displacement = (
        nibabel.load(folder / f"gamma_0.75_{name}.nii.gz")
        for name in ("image", "labels", "displacement")
    )
    assert image.ndim == 3
    assert labels.get_data_dtype() == np.uint8
    assert displacement.shape == (*image.shape[:2], 1, 1, 2)
    assert displacement.header.get_intent()[0] == "vector"
    for file in (image, labels, displacement):
        assert np.abs(np.diag(file.affine)[0]) == 6.0  # the millimetres of the template


def test_a_registration_asks_at_which_gamma_to_predict(checkpoint):
    with pytest.raises(SystemExit, match="give predict --gamma"):
        main(["predict", "--ckpt_path", checkpoint])
    with pytest.raises(SystemExit, match="outside"):
        main(["predict", "--ckpt_path", checkpoint, "--gamma", "1.5"])


FROM_PYTHON = """
import torch
from lightning.pytorch import Trainer
from mip_lightning.data import ImagePairs, TemplateBrains
from mip_lightning.networks import ConstantWidthUNet
from mip_lightning.tasks import Registration, SquaredError, StationaryVelocity

def task():
    return Registration(
        ConstantWidthUNet(features=4, levels=3), similarity=SquaredError(0.1),
        deformation=StationaryVelocity(), divisible_by=4,
    )

first = task()
trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False,
                  limit_val_batches=1, num_sanity_val_steps=0)
data = ImagePairs(TemplateBrains(8, resolution=8), train_fraction=0.5, validation_fraction=0.25)
trainer.fit(first, data)
trainer.save_checkpoint("task.ckpt")
saved = torch.load("task.ckpt", weights_only=True)["hyper_parameters"]
assert saved["divisible_by"] == 4 and "similarity" not in saved, saved
assert "deformation" not in first.hparams_initial
again = Registration.load_from_checkpoint(
    "task.ckpt", primary=ConstantWidthUNet(features=4, levels=3), similarity=SquaredError(0.1),
    deformation=StationaryVelocity(), weights_only=True,
)
assert again.divisible_by == 4
for name, value in again.state_dict().items():
    assert torch.equal(value, first.state_dict()[name])
"""


def test_a_task_with_parts_from_python_loads_from_its_checkpoint_without_a_warning():
    # In a process of its own, for the shape checks of the tests change what Lightning sees.
    warned = ["-W", "error::UserWarning:lightning", "-W", "error:Attribute:UserWarning"]
    done = subprocess.run(
        [sys.executable, *warned, "-c", FROM_PYTHON], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "instance of `nn.Module`" not in done.stderr
