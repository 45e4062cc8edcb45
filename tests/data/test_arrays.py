import pytest
import torch
from helpers import write_mnist

from mip_lightning import UsageError
from mip_lightning.data import MNIST, Digits


def splits(data) -> dict[str, tuple[torch.Tensor, ...]]:
    data.prepare_data()
    data.setup("fit")
    loaders = {
        "train": data.train_dataloader(),
        "val": data.val_dataloader(),
        "test": data.test_dataloader(),
    }
    return {name: loader.dataset.tensors for name, loader in loaders.items() if loader}


def test_digits_are_split_so_that_each_class_keeps_its_share():
    split = splits(Digits())
    assert [len(labels) for _, labels in split.values()] == [1149, 288, 360]
    assert sum(len(images) for images, _ in split.values()) == 1797
    every = torch.cat([labels for _, labels in split.values()])
    share = every.bincount() / len(every)
    for images, labels in split.values():
        assert images.shape[1:] == (1, 8, 8)
        assert images.min() == 0
        assert images.max() == 1
        torch.testing.assert_close(labels.bincount() / len(labels), share, atol=6e-3, rtol=0)


def test_the_splits_share_no_sample_and_the_split_depends_on_its_seed_alone():
    first, again = splits(Digits()), splits(Digits())
    other = splits(Digits(split_seed=1))
    assert torch.equal(first["val"][0], again["val"][0])
    assert not torch.equal(first["val"][0], other["val"][0])
    assert torch.equal(first["test"][0], other["test"][0])
    rows = {name: {tuple(i.flatten().tolist()) for i in x} for name, (x, _) in first.items()}
    assert not rows["train"] & rows["val"]
    assert not rows["train"] & rows["test"]


def test_the_first_training_samples_are_kept_and_none_is_held_out_if_so_asked():
    split = splits(Digits(num_train=100, validation_fraction=0.0))
    everything = splits(Digits(validation_fraction=0.0))
    assert split.keys() == {"train", "test"}
    assert torch.equal(split["train"][0], everything["train"][0][:100])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_train": 1}, "num_train=1"),
        ({"validation_fraction": 1.0}, "validation_fraction=1.0"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(UsageError, match=says):
        Digits(**options)


def test_too_few_samples_to_stratify_are_refused_by_name():
    data = Digits(num_train=5)
    with pytest.raises(UsageError, match=r"validation_fraction=0.2 of 5 training samples"):
        data.setup("fit")


def test_mnist_is_read_from_a_folder_in_the_layout_of_torchvision(tmp_path):
    split = splits(MNIST(str(write_mnist(tmp_path / "data"))))
    assert [len(labels) for _, labels in split.values()] == [40, 10, 10]
    images, labels = split["test"]
    assert images.shape == (10, 1, 28, 28)
    assert images[0, 0, 0, :3].tolist() == pytest.approx([0, 1 / 255, 2 / 255])
    assert labels.tolist() == list(range(10))


def test_real_mnist_is_read_from_its_archives_which_stay_as_they_are(real_mnist):
    before = sorted(path.name for path in real_mnist.rglob("*"))
    split = splits(MNIST(str(real_mnist)))
    assert [len(labels) for _, labels in split.values()] == [48000, 12000, 10000]
    assert split["test"][1][:5].tolist() == [7, 2, 1, 0, 4]
    assert sorted(path.name for path in real_mnist.rglob("*")) == before


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files and no MNIST/raw"):
        MNIST(str(tmp_path)).prepare_data()


def test_a_download_that_fails_is_told_in_one_line(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise RuntimeError("Error downloading train-images:\nTried mirror\nNo route")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", no_network)
    with pytest.raises(UsageError, match="could not be read or downloaded") as error:
        MNIST(str(tmp_path / "new")).prepare_data()
    assert "\n" not in str(error.value)


def test_a_folder_that_lacks_a_file_or_holds_a_broken_one_is_refused_by_name(tmp_path):
    folder = write_mnist(tmp_path / "data")
    labels = folder / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    labels.write_bytes(b"broken")
    with pytest.raises(UsageError, match="could not be read"):
        splits(MNIST(str(folder)))
    labels.unlink()
    with pytest.raises(UsageError, match=r"lacks train-images-idx3-ubyte.gz"):
        splits(MNIST(str(folder)))
