"""Classification and segmentation by networks that rescale by gamma."""

import math
from collections.abc import Sequence

import monai.losses
import numpy as np
import pytest
import torch
from helpers import output_at, trainer
from monai.losses import DiceCELoss
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from mip_lightning import HyperLightningModule, Uniform, UsageError
from mip_lightning.core.requested_gamma import RequestedGamma
from mip_lightning.data.segmented_images import SegmentedDataset, SegmentedImages
from mip_lightning.data.subjects import Subject
from mip_lightning.networks import ConstantWidthUNet, ScaleSpaceResNet, ScaleSpaceUNet
from mip_lightning.tasks import Classification, CrossEntropyThenSoftDice, Segmentation
from mip_lightning.tasks._dice import LabelDice
from mip_lightning.tasks._volumes import clear_padding
from mip_lightning.trainer.gamma_search import GammaSearch
from mip_lightning.trainer.trainer import HyperTrainer


def classification(**options) -> Classification:
    network = ScaleSpaceResNet(num_classes=4, in_channels=1, features=[4, 6])
    return Classification(network, **options)


def segmentation(**options) -> Segmentation:
    return Segmentation(ScaleSpaceUNet(1, 3, features=4, levels=3), **options)


def labelled(size: tuple[int, ...] = (12, 10), labels: int = 3) -> dict[str, torch.Tensor]:
    shape = (2, 1, *size)
    return {
        "image": torch.rand(shape),
        "labels": torch.randint(0, labels, shape, dtype=torch.uint8),
    }


def test_classification_is_smoothed_cross_entropy_at_the_network_of_that_gamma():
    model = classification(label_smoothing=0.2)
    images, labels, gamma = torch.rand(6, 1, 16, 16), torch.arange(6) % 4, torch.tensor([[0.3]])
    loss, logits, target = output_at(model, [images, labels], gamma)
    network = model.model.materialize(0.3)
    probabilities = network(images).softmax(dim=1)
    smooth = 0.8 * F.one_hot(labels, 4) + 0.2 / 4
    torch.testing.assert_close(loss, -(smooth * probabilities.log()).sum(dim=1).mean())
    torch.testing.assert_close(logits, network(images).detach())
    assert target is labels


def test_what_is_not_said_is_the_papers():
    model = classification()
    assert (model.theta_decay, model.label_smoothing, model.draws_per_batch) == (1e-3, 0.1, 1)
    for task in (model, segmentation()):
        assert str(task.model.prior) == str(Uniform(0.0, 0.5))
        assert task.model.formulation == "mip"


@pytest.mark.parametrize("make", [classification, segmentation])
def test_ranks_draw_one_gamma_unless_each_is_to_draw_its_own(make, monkeypatch):
    drawn = {}
    for share in (True, False):
        model = make(ranks_share_gamma=share)
        model.gamma_seed = 1
        for rank in (0, 1):
            monkeypatch.setattr(HyperLightningModule, "global_rank", rank)
            drawn[share, rank] = model.sample_gamma(None, 3).item()
    assert drawn[True, 0] == drawn[True, 1] == drawn[False, 0]
    assert drawn[False, 0] != drawn[False, 1]


def test_a_batch_of_one_class_trains():
    model = classification()
    loss = output_at(
        model, [torch.rand(3, 1, 8, 8), torch.full((3,), 2)], torch.tensor([[0.1]])
    ).loss
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_label_that_is_no_class_is_named():
    with pytest.raises(UsageError, match="reach from 0 to 4, and the primary tells 4 classes"):
        output_at(
            classification(), [torch.rand(2, 1, 8, 8), torch.tensor([0, 4])], torch.tensor([[0.1]])
        )
    with pytest.raises(UsageError, match="reach from -1 to 0"):
        output_at(
            classification(), [torch.rand(2, 1, 8, 8), torch.tensor([-1, 0])], torch.tensor([[0.1]])
        )
    with pytest.raises(UsageError, match="tells 3 classes apart"):
        output_at(segmentation(), labelled(labels=9), torch.tensor([[0.3]]))


def test_classes_are_predicted_at_the_one_gamma_that_is_asked_for():
    model, images = classification(), torch.rand(5, 1, 12, 12)
    loader = DataLoader(images, 5)
    runner = HyperTrainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    (found,) = runner.predict(model, loader, gamma=0.3)
    probabilities = model.model.materialize(0.3)(images).softmax(dim=1)
    torch.testing.assert_close(found["probabilities"], probabilities)
    assert torch.equal(found["predicted"], probabilities.argmax(dim=1))
    with pytest.raises(UsageError, match="--gamma"):
        runner.predict(model, loader)
    with pytest.raises(UsageError, match="holds 2 values"):
        runner.predict(model, loader, gamma=[0.1, 0.2])


def test_soft_dice_is_the_formula_of_its_docstring_and_nothing_for_an_empty_label():
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    labels = torch.zeros(2, 1, 4, 5, dtype=torch.uint8)
    labels[0, 0, :2] = 1  # label 2 is nowhere, and the second image is empty
    found = CrossEntropyThenSoftDice(switch_at=0)(logits, labels)
    p, s = logits.softmax(dim=1), 1e-5
    losses = []
    for image in range(2):
        for label in (1, 2):
            y = (labels[image, 0] == label).double()
            overlap = (p[image, label] * y).sum()
            losses.append(1 - (2 * overlap + s) / (p[image, label].sum() + y.sum() + s))
    torch.testing.assert_close(found, torch.stack(losses).mean())
    sure = torch.full((2, 3, 4, 5), -60.0)
    sure.scatter_(1, labels.long(), 60.0)
    assert CrossEntropyThenSoftDice(switch_at=0)(sure, labels).item() == pytest.approx(0, abs=1e-6)


def test_before_the_switch_the_loss_is_cross_entropy():
    batch = labelled()
    logits = torch.randn(2, 3, 12, 10)
    expected = -logits.log_softmax(dim=1).gather(1, batch["labels"].long()).mean()
    torch.testing.assert_close(CrossEntropyThenSoftDice()(logits, batch["labels"]), expected)


@pytest.mark.parametrize(
    ("switch_at", "epochs", "switched"),
    [
        (0, 2, [True] * 4),
        (0.5, 2, [False, False, True, True]),
        (1, 2, [False, False, True, True]),
        (2, 3, [False] * 4 + [True] * 2),
        (0.25, 2, [False, True, True, True]),
    ],
)
def test_the_loss_switches_at_an_epoch_or_a_share_of_training(switch_at, epochs, switched):
    seen = []

    class Seen(CrossEntropyThenSoftDice):
        def forward(self, logits, labels):
            if logits.requires_grad:
                seen.append(self.switched)
            return super().forward(logits, labels)

    sample = {name: value[0] for name, value in labelled().items()}
    model = segmentation(objective=Seen(switch_at))
    trainer(max_epochs=epochs).fit(model, *[DataLoader([sample] * 2, 1)] * 2)
    assert seen == switched


def test_a_checkpoint_is_measured_by_the_loss_that_its_training_had_come_to():
    sample = {name: value[0] for name, value in labelled().items()}
    loaders = [DataLoader([sample] * 2, 1)] * 2
    model, runner = segmentation(objective=CrossEntropyThenSoftDice(1)), trainer(max_epochs=2)
    runner.fit(model, *loaders)
    runner.save_checkpoint("last.ckpt")
    (trained,) = trainer().validate(model, loaders[1], verbose=False)
    again = segmentation(objective=CrossEntropyThenSoftDice(1))
    (loaded,) = trainer().validate(again, loaders[1], ckpt_path="last.ckpt", verbose=False)
    assert again.objective.switched
    assert loaded["val_loss"] == pytest.approx(trained["val_loss"])


class Endless(IterableDataset):
    """Data that does not know its length."""

    def __iter__(self):
        return iter([{name: value[0] for name, value in labelled().items()}] * 2)


def test_a_share_of_training_without_a_known_end_is_refused():
    loader = DataLoader([{name: value[0] for name, value in labelled().items()}], 1)
    with pytest.raises(UsageError, match="and its end is not known"):
        trainer(max_epochs=-1).fit(segmentation(), loader, loader)
    with pytest.raises(UsageError, match="and its end is not known"):
        trainer(max_epochs=2).fit(segmentation(), DataLoader(Endless(), 1), loader)
    for wrong in (-1.0, 1.5, math.nan, math.inf):
        with pytest.raises(UsageError, match=f"switch_at={wrong:g}"):
            CrossEntropyThenSoftDice(wrong)


def test_a_weighted_sum_of_both_is_monais():
    objective = monai.losses.DiceCELoss(
        include_background=False, to_onehot_y=True, softmax=True, lambda_dice=0.3, lambda_ce=0.7
    )
    batch, gamma = labelled(), torch.tensor([[0.4]])
    model = segmentation(objective=objective)
    loss = output_at(model, batch, gamma).loss
    logits = model.model.materialize(0.4)(batch["image"])
    parts = [CrossEntropyThenSoftDice(at)(logits, batch["labels"]) for at in (0, 1)]
    torch.testing.assert_close(loss, 0.3 * parts[0] + 0.7 * parts[1])


def test_dice_counts_an_empty_mask_as_its_docstring_says():
    empty, half = torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.zeros(1, 1, 4, 4)
    half = half.to(torch.uint8)
    half[..., :2] = 2
    dice = LabelDice()
    dice.update(empty, empty)
    assert math.isnan(dice.compute())
    dice.update(half, half)
    assert dice.compute() == 1  # the empty sample is left out
    dice.update(half, empty)
    assert dice.compute() == 0.5
    assert {label: float(value) for label, value in dice.compute_by_label().items()} == {2: 0.5}


def test_segmentation_measures_the_most_probable_labels():
    model, batch = segmentation(), labelled()
    output = output_at(model, batch, torch.tensor([[0.2]]))
    logits = model.model.materialize(0.2)(batch["image"])
    assert torch.equal(output.prediction, logits.argmax(dim=1, keepdim=True).to(torch.uint8))
    assert output.target is batch["labels"]


class Reading(nn.Module):
    """Predicts the label that is one less than the image, and label 2 where the image is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        labels = torch.where(image > 0, image - 1, 2).long()[:, 0]
        return self.weight * F.one_hot(labels, 3).movedim(-1, 1)


def dice_of(found: np.ndarray, expected: np.ndarray, labels: Sequence[int]) -> float:
    """The mean Dice of labels, counted by hand."""
    masks = [(found == label, expected == label) for label in labels]
    return float(np.mean([2 * (f & e).sum() / (f.sum() + e.sum()) for f, e in masks]))


def of_sizes(*sizes: tuple[int, ...]) -> list[Subject]:
    """Subjects of which ``Reading`` predicts some voxels wrong and some right."""
    subjects = []
    for index, size in enumerate(sizes):
        true = torch.randint(0, 3, (1, *size), dtype=torch.uint8)
        found = torch.where(torch.rand(true.shape) < 0.7, true, torch.randint_like(true, 3))
        subjects.append(Subject(f"s{index}", f"p{index}", "", found + 1.0, true, torch.eye(4)))
    return subjects


SIZES = {
    2: [(9, 10), (6, 5), (9, 7), (4, 10), (5, 5)],
    3: [(6, 5, 4), (3, 5, 2), (4, 2, 3), (6, 4, 1), (5, 5, 4)],
}


@pytest.mark.parametrize("batch_size", [1, 2, 4])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_dice_is_over_each_images_own_voxels_in_batches_of_any_size(batch_size, backwards, dims):
    subjects = of_sizes(*SIZES[dims])
    alone = [dice_of(s.image.numpy() - 1, s.labels.numpy(), [1, 2]) for s in subjects]
    assert max(alone) < 0.9
    largest = np.max(SIZES[dims], axis=0).tolist()
    ordered = subjects[::-1] if backwards else subjects
    loader = DataLoader(SegmentedDataset(ordered, largest), batch_size)
    model = Segmentation(Reading(), test_grid_size=2, validation_grid_size=2).eval()
    (found,) = trainer().test(model, loader, verbose=False)
    assert found["test_dice"] == pytest.approx(np.mean(alone))
    (found,) = trainer().validate(model, loader, verbose=False)
    assert found["val_dice"] == pytest.approx(np.mean(alone))
    with torch.no_grad():
        search = GammaSearch(model, list(loader), "dice", grid_size=2, tolerance=0.5)
        by_subject = search.select("subject")
        assert [by_subject[s.name].value for s in subjects] == pytest.approx(alone)
        assert search.select("all")["all"].value == pytest.approx(np.mean(alone))
        for label, best in search.select("label").items():
            each = [dice_of(s.image.numpy() - 1, s.labels.numpy(), [int(label)]) for s in subjects]
            assert best.value == pytest.approx(np.mean(each))
        model.requested = RequestedGamma(model.model.prior, 0.25)
        volumes = [volume for batch in loader for volume in model.predict_step(batch, 0)]
    written = {volume.name.split("/")[0]: volume.values.numpy() for volume in volumes}
    of_written = [dice_of(written[s.name], s.labels[0].numpy(), [1, 2]) for s in subjects]
    assert of_written == pytest.approx(alone)


def test_images_in_their_own_sizes_have_the_dice_that_they_have_in_a_batch():
    subjects = of_sizes((9, 10), (6, 5))
    values = [
        trainer().test(
            Segmentation(Reading(), test_grid_size=1),
            DataLoader(SegmentedDataset(subjects, size), batch_size),
            verbose=False,
        )[0]["test_dice"]
        for size, batch_size in ((None, 1), ([9, 10], 2))
    ]
    assert values[0] == pytest.approx(values[1])


def test_labels_that_are_given_for_the_padding_do_not_count():
    (sample,) = SegmentedDataset(of_sizes((4, 5)), [8, 8])
    found, true = sample["image"][0, 2:6, 2:7].numpy() - 1, sample["labels"][0, 2:6, 2:7].numpy()
    sample["labels"] = sample["labels"].clone()
    sample["labels"][:, :2] = 1
    loader = DataLoader([sample], 1)
    (got,) = trainer().test(Segmentation(Reading(), test_grid_size=1), loader, verbose=False)
    assert got["test_dice"] == pytest.approx(dice_of(found, true, [1, 2]))


@pytest.mark.parametrize(
    "objective", [CrossEntropyThenSoftDice(), DiceCELoss(softmax=True, to_onehot_y=True)]
)
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_the_loss_is_over_each_images_own_voxels_in_batches_of_any_size(objective, batch_size):
    """nnU-Net issue 2818, DeepMedic issue 63: padding counted."""
    subjects = of_sizes(*SIZES[2])
    model = Segmentation(Reading(), objective=objective, validation_grid_size=1).train()
    network = model.model.materialize(0.25).requires_grad_(False)
    expected = [float(objective(network(s.image[None]), s.labels[None])) for s in subjects]
    for order in (subjects, subjects[::-1]):
        (found,) = trainer().validate(
            model, DataLoader(SegmentedDataset(order, [9, 10]), batch_size), verbose=False
        )
        assert found["val_loss"] == pytest.approx(np.mean(expected))


def test_a_training_step_measures_each_images_own_voxels():
    subjects = of_sizes((8, 8), (4, 5))
    (batch,) = DataLoader(SegmentedDataset(subjects, [8, 8]), 2)
    prediction = output_at(Segmentation(Reading()).train(), batch, torch.tensor([[0.2]])).prediction
    assert prediction[1].sum() == (subjects[1].image - 1).sum()


def test_a_batch_of_a_data_module_tells_sizes_on_the_cpu():
    """Where a training step reads them without a wait for the device."""
    subjects = of_sizes((8, 8), (4, 5))
    (batch,) = DataLoader(SegmentedDataset(subjects, [8, 8]), 2, collate_fn=SegmentedImages.collate)
    assert isinstance(batch["size"], np.ndarray)
    moved = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    assert clear_padding(moved["labels"], moved).shape == batch["labels"].shape


def test_sizes_may_be_integers_too_small_for_the_padded_size():
    labels, size = torch.ones(1, 1, 300, 4), torch.tensor([[30, 4]], dtype=torch.uint8)
    cleared = clear_padding(labels, {"size": size})
    assert cleared[0, 0, 135:165].sum() == cleared.sum() == 120


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (torch.tensor([[10, 12], [12, 10]]), r"size=\[10, 12\].*does not fit into the 12 x 10"),
        (torch.tensor([[12, 10], [0, 10]]), r"size=\[0, 10\]"),
        (torch.tensor([[12, 10, 1]] * 2), r"shape \(2, 3\).*integers of shape \(2, 2\)"),
        (torch.tensor([[12.0, 10.0]] * 2), "float32"),
        (["12", "10"], r"size of a batch: <U2 of shape \(2,\)"),
    ],
)
def test_a_size_that_is_none_of_images_in_the_middle_is_refused(size, says):
    with pytest.raises(UsageError, match=says):
        output_at(segmentation(), labelled() | {"size": size}, torch.tensor([[0.2]]))


@pytest.mark.parametrize("channels", [1, 300])
def test_a_number_of_channels_that_is_none_of_labels_is_refused(channels):
    model = Segmentation(nn.Conv2d(1, channels, kernel_size=1))
    with pytest.raises(UsageError, match=f"gives {channels} channels: give one for each label"):
        output_at(model, labelled(), torch.tensor([[0.2]]))


def test_predictions_predict_the_weights_at_a_gamma_once(monkeypatch):
    model = segmentation()
    count = []
    predict = model.model._predict
    monkeypatch.setattr(
        model.model, "_predict", lambda gamma: (count.append(gamma.item()), predict(gamma))[1]
    )
    samples = [{n: v[0] for n, v in labelled().items()} | {"name": str(i)} for i in range(6)]
    runner = HyperTrainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    runner.predict(model, DataLoader(samples, 2), gamma=[0.125, 0.25])
    assert count == [0.125, 0.25]


def test_logits_of_another_size_than_the_image_are_refused():
    model = Segmentation(nn.Conv2d(1, 3, kernel_size=3))
    with pytest.raises(UsageError, match="for images of 12 x 10: logits have their size"):
        output_at(model, labelled(), torch.tensor([[0.2]]))


@pytest.mark.parametrize("size", [(12, 10), (8, 9, 10)])
def test_volumes_and_figures_are_of_each_gamma(size):
    dims = len(size)
    model = Segmentation(ScaleSpaceUNet(1, 3, dims, features=4, levels=2)).eval()
    batch = labelled(size) | {"name": ["a", "b"], "size": torch.tensor([size, [5] * dims])}
    figure = model.plot_examples(batch, torch.tensor([[0.1], [0.4]]))["segmentation"]
    assert [axes.get_title() for axes in figure.axes][2:] == [
        r"predicted, $\gamma$ = 0.1",
        r"predicted, $\gamma$ = 0.4",
    ]
    with pytest.raises(UsageError, match="--gamma"):
        model.predict_step(batch, 0)
    model.requested = RequestedGamma(model.model.prior, [0.1, 0.4])
    with torch.no_grad():
        volumes = model.predict_step(batch, 0)
    assert [volume.name for volume in volumes] == [
        f"{name}/gamma_{gamma}_labels" for name in "ab" for gamma in ("0.1", "0.4")
    ]
    assert [tuple(volume.values.shape) for volume in volumes] == [size] * 2 + [(5,) * dims] * 2
    whole = model.model.materialize(0.4)(batch["image"]).argmax(dim=1)
    starts = [length // 2 - 2 for length in size]
    box = (1, *(slice(start, start + 5) for start in starts))
    assert torch.equal(volumes[3].values, whole[box].to(torch.uint8))


def test_predictions_and_figures_tell_each_dimension_of_gamma():
    prior = Uniform(0, 1, dim=2)
    task = Segmentation(ConstantWidthUNet(1, 3, features=4, levels=2), prior).eval()
    task.requested = RequestedGamma(prior, [[0.25, 0.5], [0.25, 0.75]])
    batch = {**labelled(), "name": ["a", "b"]}
    with torch.no_grad():
        volumes = task.predict_step(batch, 0)
        figure = task.plot_examples(batch, prior.grid(2))["segmentation"]
    assert [volume.name for volume in volumes[:2]] == [
        "a/gamma_0.25_0.5_labels",
        "a/gamma_0.25_0.75_labels",
    ]
    assert "0, " in figure.axes[2].get_title()
