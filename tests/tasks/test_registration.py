import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from helpers import ROOT, output_at, trainer
from monai.losses import (
    BendingEnergyLoss,
    GlobalMutualInformationLoss,
    LocalNormalizedCrossCorrelationLoss,
)
from monai.networks.nets import BasicUNet, VoxelMorphUNet
from scipy.ndimage import map_coordinates
from torch import nn
from torch.utils.data import DataLoader

from mip_lightning import (
    ByRegularExpression,
    EndPointOversampling,
    HypernetworkConfig,
    Normal,
    ThetaConfig,
    Uniform,
    UsageError,
)
from mip_lightning.core.requested_gamma import RequestedGamma
from mip_lightning.data.image_pairs import PairDataset
from mip_lightning.data.subjects import Subject
from mip_lightning.functional.spatial_transform import warp
from mip_lightning.networks import ConstantWidthUNet, HyperMorphUNet
from mip_lightning.tasks import (
    Registration,
    SquaredError,
    SquaredGradientPenalty,
    StationaryVelocity,
    TotalVariationPenalty,
)
from mip_lightning.tasks.registration.metrics import MeanDice
from mip_lightning.tasks.registration.pairs import own_pairs


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
    displacement = task.deformed(batch, task.model.at(gamma, check=False)).displacement
    assert displacement.abs().max() > 0
    similarity = SquaredError()(warp(batch["moving"], displacement), batch["fixed"])
    regularization = TotalVariationPenalty()(displacement)
    found = output_at(task, batch, gamma).loss
    torch.testing.assert_close(found, 0.75 * similarity + 0.25 * regularization)


@pytest.mark.parametrize("gamma", [0.0, 0.25, 1.0])
def test_what_does_not_move_costs_its_dissimilarity(gamma):
    batch = pair((8, 12))
    dissimilarity = nn.functional.mse_loss(batch["moving"], batch["fixed"]) / 0.05**2
    found = output_at(resting(), batch, torch.tensor([[gamma]])).loss
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
    each = [output_at(task, half, g).loss for half, g in zip(halves, gamma.split(1), strict=True)]
    torch.testing.assert_close(output_at(task, batch, gamma).loss, torch.stack(each).mean())


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
    output = output_at(task, batch, torch.tensor([[0.5]]))
    assert [found.shape for found in output.prediction] == [(2, len(size), *size)]
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in task.parameters() if p.grad is not None)


@pytest.mark.parametrize("deformation", [None, StationaryVelocity()])
def test_half_precision_of_the_network_leaves_the_positions_of_voxels_exact(deformation):
    task, batch = resting(deformation=deformation), pair((8, 600))
    with torch.autocast("cpu", torch.bfloat16):
        half = output_at(task, batch, torch.tensor([[0.0]]))
    assert half.prediction[0].dtype == torch.float32
    whole = output_at(task, batch, torch.tensor([[0.0]]))
    torch.testing.assert_close(half.loss, whole.loss)
    images = {"moving": batch["moving"], "fixed": batch["moving"]}
    with torch.autocast("cpu", torch.bfloat16):
        assert output_at(task, images, torch.tensor([[0.0]])).loss < 1e-6


def test_padding_is_symmetric():
    seen, given = [], []

    class Seeing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(2, 2, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            given.append(self.convolution(images))
            return given[-1]

    task, batch = make(Seeing(), divisible_by=4), pair((5, 8))
    flow = task.flow(batch, task.model.at(torch.tensor([[0.5]]), check=False))
    assert torch.equal(flow, given[0][:, :, 1:6])
    assert seen[0].shape == (1, 2, 8, 8)
    torch.testing.assert_close(seen[0][:, :1, 1:6], batch["moving"])
    assert seen[0][:, :, 0].abs().sum() == seen[0][:, :, 6:].abs().sum() == 0


def test_a_bidirectional_loss_does_not_change_when_images_and_flow_are_exchanged():
    network = unet()
    task = make(network, deformation=StationaryVelocity(), bidirectional=True)
    batch, gamma = pair((8, 12)), torch.tensor([[0.0]])
    flow = 2 * torch.rand(1, 2, 8, 12)
    exchanged = {"moving": batch["fixed"], "fixed": batch["moving"]}
    task.flow = lambda batch, primary: flow
    there = output_at(task, batch, gamma).loss
    task.flow = lambda batch, primary: -flow
    torch.testing.assert_close(output_at(task, exchanged, gamma).loss, there)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prior": Normal()}, r"one dimension in \[0, 1\]"),
        ({"prior": Normal(0.5, 0.1)}, r"one dimension in \[0, 1\]"),
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
        output_at(task, pair((8, 12)), torch.tensor([[0.5]]))


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


@pytest.mark.parametrize("dims", [2, 3])
def test_the_reference_network_has_the_features_of_voxelmorph(dims):
    network = HyperMorphUNet(dims)
    convolutions = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))]
    assert [c.out_channels for c in convolutions] == [16, *[32] * 8, 16, 16, dims]
    assert sum(isinstance(m, (nn.MaxPool2d, nn.MaxPool3d)) for m in network.modules()) == 4
    flow = convolutions[-1]
    assert float(flow.weight.detach().std()) == pytest.approx(1e-5, rel=0.2)
    assert not flow.bias.any()
    size = [16, 32, 16][:dims]
    assert network(torch.rand(1, 2, *size)).shape == (1, dims, *size)


def test_the_reference_starts_near_the_identity_for_its_flow_layer_is_not_predicted():
    config = yaml.safe_load((ROOT / "experiments" / "hypermorph_reference.yaml").read_text())
    (pattern,) = config["model"]["init_args"]["theta"]["predicted"]["init_args"]["patterns"]
    task = make(
        HyperMorphUNet(),
        prior=EndPointOversampling(Uniform(0, 1), 0.2),
        formulation="default",
        theta=ThetaConfig(predicted=ByRegularExpression([pattern])),
        regularization=SquaredGradientPenalty(factor=2.0),
        deformation=StationaryVelocity(half_resolution=True),
        divisible_by=16,
    )
    left = {name for name, _ in task.model.primary.named_parameters()} - set(task.model.theta0)
    assert left == {f"net.1.final_conv_out.conv.{kind}" for kind in ("weight", "bias")}
    batch, gamma = pair((16, 32)), torch.tensor([[0.5]])
    assert output_at(task, batch, gamma).loss.isfinite()
    assert task.deformed(batch, task.model.at(gamma, check=False)).displacement.abs().max() < 1e-2


def test_volumes_are_cut_to_the_size_of_the_fixed_image():
    task = resting().eval()
    task.requested = RequestedGamma(task.model.prior, 0.5)
    batch = pair((8, 12)) | {
        "moving_name": ["a"],
        "fixed_name": ["b"],
        "size": torch.tensor([[5, 7]]),
        "affine": torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0])).unsqueeze(0),
    }
    with torch.no_grad():
        image, labels, displacement = task.predict_step(batch, 0)
    assert [volume.name for volume in (image, labels, displacement)] == [
        f"a_to_b/gamma_0.5_{kind}" for kind in ("image", "labels", "displacement")
    ]
    torch.testing.assert_close(image.values, batch["moving"][0, 0, 2:7, 3:10])
    assert torch.equal(labels.values, batch["moving_labels"][0, 0, 2:7, 3:10])
    assert torch.equal(displacement.values, torch.zeros(5, 7, 3))
    assert torch.equal(image.affine, batch["affine"][0])


def test_dice_before_registration_is_that_of_one_evaluation_alone():
    task, batch = make(validation_grid_size=2).eval(), pair((8, 12))
    interrupted = task.evaluation("val")
    interrupted.update(pair((8, 12)), task.step_output)  # one that was broken off
    trainer().validate(task, DataLoader([batch], None), verbose=False)
    alone, nothing = MeanDice(), torch.zeros(1, 2, 8, 12)
    alone.update([nothing], own_pairs(batch, nothing))
    assert task.evaluation("val").result.references["dice"][1] == pytest.approx(
        alone.compute().item()
    )


def boxes(padded: tuple[int, ...], sizes: list[tuple[int, ...]]) -> list[tuple[slice, ...]]:
    """Where images stand: their voxel n // 2 on the voxel p // 2 of the padded one."""
    starts = [[p // 2 - n // 2 for p, n in zip(padded, size, strict=True)] for size in sizes]
    return [
        tuple(slice(start, start + n) for start, n in zip(first, size, strict=True))
        for first, size in zip(starts, sizes, strict=True)
    ]


def measured_by_hand(displacement: np.ndarray) -> tuple[float, float]:
    """Folded share and gradient magnitude of one displacement ``(D, *S)``, in float64."""
    axes = len(displacement)
    gradient = np.stack([np.stack(np.gradient(u)) for u in displacement.astype(float)])
    jacobian = np.moveaxis(gradient, (0, 1), (-2, -1)) + np.eye(axes)
    folded = np.linalg.det(jacobian) <= 0
    return float(folded.mean()), float(np.sqrt((gradient**2).sum(axis=(0, 1))).mean())


def dice_by_hand(found: np.ndarray, expected: np.ndarray) -> float:
    """Mean Dice over the labels that are in one of both."""
    labels = sorted({*np.unique(found), *np.unique(expected)} - {0})
    overlaps = [2 * ((found == k) & (expected == k)).sum() for k in labels]
    volumes = [(found == k).sum() + (expected == k).sum() for k in labels]
    return float(np.mean([o / v for o, v in zip(overlaps, volumes, strict=True)]))


METRICS = ("dice", "folded_share", "gradient_magnitude")

PADDED = [
    ((11, 12), [(11, 12), (6, 9), (7, 8), (2, 12), (11, 5)]),
    ((7, 8, 6), [(7, 8, 6), (4, 5, 3), (5, 8, 2), (2, 3, 6)]),
]


def in_the_middle(values: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    larger = torch.rand(*values.shape[:2], *size).to(values.dtype)  # whatever the padding holds
    (box,) = boxes(size, [tuple(values.shape[2:])])
    larger[..., *box] = values
    return larger


def sampled(image: torch.Tensor, at: np.ndarray, order: int) -> np.ndarray:
    return map_coordinates(image[0, 0].double().numpy(), at, order=order, mode="nearest")


@pytest.mark.parametrize(("padded", "sizes"), PADDED)
@pytest.mark.parametrize("number", [1, 2, 5])
def test_loss_and_metrics_are_of_each_images_own_voxels(padded, sizes, number):
    """By scipy, from each pair without its padding: in batches of any size and order.

    nnU-Net issue 2818, DeepMedic issue 63.
    """
    dims, gamma = len(padded), 0.3
    samples, losses, measured = [], [], []
    for fixed_size, moving_size in zip(sizes, sizes[1:] + sizes[:1], strict=True):
        fixed, moving = pair(fixed_size), pair(moving_size)
        flow = 2 * torch.randn(1, dims, *fixed_size)
        larger = [max(both) for both in zip(fixed_size, moving_size, strict=True)]
        starts = [
            f.start - m.start
            for f, m in zip(*boxes(tuple(larger), [fixed_size, moving_size]), strict=True)
        ]
        voxels = np.stack(np.meshgrid(*map(np.arange, fixed_size), indexing="ij"))
        at = voxels + flow[0].double().numpy() + np.reshape(starts, (dims, *[1] * dims))
        warped = sampled(moving["moving"], at, order=1)
        similarity = np.mean((warped - fixed["fixed"][0, 0].numpy()) ** 2) / 0.05**2
        steps = [np.abs(np.diff(flow[0].double().numpy(), axis=1 + a)) for a in range(dims)]
        penalty = np.mean([step.mean() if step.size else 0.0 for step in steps])
        losses.append((1 - gamma) * similarity + gamma * penalty)
        labels = sampled(moving["moving_labels"], at, order=0)
        dice = dice_by_hand(labels, fixed["fixed_labels"][0, 0].numpy())
        measured.append((dice, *measured_by_hand(flow[0].numpy())))
        images = {
            "moving": moving["moving"],
            "moving_labels": moving["moving_labels"],
            "fixed": fixed["fixed"],
            "fixed_labels": fixed["fixed_labels"],
            "flow": flow,
        }
        sizes_of = {"size": torch.tensor([fixed_size]), "moving_size": torch.tensor([moving_size])}
        in_batch = {k: in_the_middle(v, padded) for k, v in images.items()}
        samples.append(in_batch | sizes_of)
    task = make(unet(dims))
    task.flow = lambda batch, primary: batch["flow"]
    for order in (samples, samples[::-1]):
        metrics, total = task.configure_metrics(), 0.0
        for first in range(0, len(order), number):
            some = order[first : first + number]
            batch = {key: torch.cat([sample[key] for sample in some]) for key in some[0]}
            output = output_at(task, batch, torch.tensor([[gamma]]))
            total += float(output.loss) * len(some)
            for metric in metrics.values():
                metric.update(output.prediction, output.target)
        assert total / len(order) == pytest.approx(np.mean(losses), rel=1e-4)
        values = [float(metrics[name].compute()) for name in METRICS]
        assert values == pytest.approx(np.mean(measured, axis=0).tolist(), rel=1e-5)


@pytest.mark.parametrize(
    "deformation", [StationaryVelocity(), StationaryVelocity(half_resolution=True)]
)
def test_a_bidirectional_loss_does_not_depend_on_the_batch_size(deformation):
    """The velocity of a pair is integrated on the own voxels of its images."""
    task = make(deformation=deformation, bidirectional=True)
    task.flow = lambda batch, primary: batch["flow"]
    sizes = [((9, 12), (7, 12)), ((6, 8), (9, 5)), ((9, 12), (9, 12))]
    samples = []
    for fixed_size, moving_size in sizes:
        larger = tuple(max(both) for both in zip(fixed_size, moving_size, strict=True))
        both = {"fixed": torch.rand(1, 1, *fixed_size), "moving": torch.rand(1, 1, *moving_size)}
        images = {key: in_the_middle(value, larger) for key, value in both.items()}
        images["flow"] = torch.randn(1, 2, *larger)
        own = {"size": torch.tensor([fixed_size]), "moving_size": torch.tensor([moving_size])}
        samples.append((images, own))
    gamma = torch.tensor([[0.2]])
    alone = [output_at(task, images | own, gamma).loss for images, own in samples]
    together = {
        key: torch.cat([in_the_middle(images[key], (9, 12)) for images, _ in samples])
        for key in samples[0][0]
    } | {key: torch.cat([own[key] for _, own in samples]) for key in samples[0][1]}
    torch.testing.assert_close(output_at(task, together, gamma).loss, torch.stack(alone).mean())
    draws = torch.tensor([[0.2], [0.5], [0.9]])
    each = [
        output_at(task, images | own, draw[None]).loss
        for (images, own), draw in zip(samples, draws, strict=True)
    ]
    torch.testing.assert_close(output_at(task, together, draws).loss, torch.stack(each).mean())


@pytest.mark.parametrize("number", [1, 2, 4])
def test_dice_before_registration_and_at_rest_is_of_the_fixed_images_own_voxels(number):
    """What of a larger moving image reaches beyond the fixed one does not count."""
    sizes = [(8, 11), (5, 6), (7, 11), (3, 4)]
    subjects = []
    for name, size in zip("abcd", sizes, strict=True):
        labels = torch.randint(0, 3, (1, *size), dtype=torch.uint8)
        subjects.append(Subject(name, name, "", torch.rand(1, *size), labels, torch.eye(4)))
    pairs = PairDataset(subjects, (8, 11))
    alone = []
    for sample in pairs:
        (box,) = boxes((8, 11), [tuple(sample["size"].tolist())])
        (other,) = boxes((8, 11), [tuple(sample["moving_size"].tolist())])
        fixed, moving = sample["fixed_labels"][0].numpy(), sample["moving_labels"][0].numpy()
        # Beyond its border the moving image goes on as it is there.
        starts = [f.start - m.start for f, m in zip(box, other, strict=True)]
        fixed, moving = fixed[box], moving[other]
        at = np.stack(np.meshgrid(*map(np.arange, fixed.shape), indexing="ij"))
        at = at + np.reshape(starts, (2, 1, 1))
        alone.append(dice_by_hand(map_coordinates(moving, at, order=0, mode="nearest"), fixed))
    task = resting(validation_grid_size=2)
    (found,) = trainer().validate(task, DataLoader(pairs, number), verbose=False)
    assert found["val_dice_before"] == pytest.approx(np.mean(alone))
    assert found["val_dice"] == pytest.approx(np.mean(alone))
    assert found["val_folded_share"] == found["val_gradient_magnitude"] == 0.0


@pytest.mark.parametrize("key", ["size", "moving_size"])
def test_a_size_that_does_not_fit_is_named(key):
    task = make()
    for size, says in (
        (
            torch.tensor([[8, 12], [12, 8]]),
            rf"{key}=\[12, 8\].*does not fit into the 8 x 12",
        ),
        (torch.tensor([[8, 12]]), r"shape \(1, 2\).*give integers of shape \(2, 2\)"),
    ):
        with pytest.raises(UsageError, match=says):
            output_at(task, pair((8, 12), 2) | {key: size}, torch.tensor([[0.5]]))


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

class Own(Registration):
    def __init__(self, primary, extra=3, **kwargs):
        super().__init__(primary, similarity=SquaredError(0.1), **kwargs)
        self.extra = extra

own = Own(ConstantWidthUNet(features=4, levels=3), extra=4, divisible_by=8)
own.trainer = trainer
trainer.strategy.connect(own)
trainer.save_checkpoint("own.ckpt")
again = Own.load_from_checkpoint(
    "own.ckpt", primary=ConstantWidthUNet(features=4, levels=3), weights_only=True
)
assert (again.extra, again.divisible_by) == (4, 8)
"""


def test_a_task_with_parts_from_python_loads_from_its_checkpoint_without_a_warning():
    # In a process of its own, for the shape checks of the tests change what Lightning sees.
    warned = ["-W", "error::UserWarning:lightning", "-W", "error:Attribute:UserWarning"]
    done = subprocess.run(
        [sys.executable, *warned, "-c", FROM_PYTHON], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "instance of `nn.Module`" not in done.stderr
