from pathlib import Path

import pytest
import torch
from helpers import bayesian_task, image_loader, rows, trainer
from torch.utils.data import DataLoader, IterableDataset

from mip_lightning.callbacks import PredictionWriter


@pytest.mark.parametrize("suffix", [".csv", ".pt"])
def test_predictions_are_written_in_the_order_of_the_data(suffix):
    task = bayesian_task()
    writer = PredictionWriter(f"deep/predictions{suffix}")
    trainer(callbacks=[writer], default_root_dir="out").predict(task, image_loader())
    expected = task.predict_step(image_loader().dataset.tensors, 0)
    assert torch.equal(expected["label"], image_loader().dataset.tensors[1])
    path = Path(f"out/deep/predictions{suffix}")
    if suffix == ".pt":
        written = torch.load(path, weights_only=True)
        assert written.keys() == expected.keys()
        torch.testing.assert_close(written["probabilities"], expected["probabilities"])
    else:
        written = rows(path)
        assert [int(r["sample"]) for r in written] == list(range(20))
        assert [int(r["predicted"]) for r in written] == expected["predicted"].tolist()
        first = [float(written[0][f"probabilities_{c}"]) for c in range(3)]
        assert first == pytest.approx(expected["probabilities"][0].tolist(), rel=1e-5)
    assert len(list(Path("out/deep").iterdir())) == 1


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(*image_loader().dataset.tensors, strict=True))


def test_predictions_of_a_stream_are_written_in_its_order():
    task = bayesian_task()
    t = trainer(callbacks=[PredictionWriter("p.pt")], default_root_dir="out")
    with pytest.warns(UserWarning, match="Couldn't infer the batch indices"):
        t.predict(task, DataLoader(Stream(), 8))
    expected = task.predict_step(image_loader().dataset.tensors[0], 0)["probabilities"]
    torch.testing.assert_close(torch.load("out/p.pt")["probabilities"], expected)
