import csv
import math
from functools import partial
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from helpers import Denoising, loader, python, trainer
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from mip_lightning import HyperModel, HypernetworkConfig, LowRankHead, ThetaConfig, Uniform
from mip_lightning.callbacks import GradientStats
from mip_lightning.diagnostics.gradients import (
    PARTS,
    GradientNorms,
    plot_gradient_statistics,
    statistics,
)
from mip_lightning.errors import UsageError
from mip_lightning.networks import LeNet

HEADS = {"dense": {}, "low rank": {"head": partial(LowRankHead, rank=1)}}


def rows(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def norm(tensors) -> float:
    return sum(t.double().square().sum() for t in tensors).sqrt().item()


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_norms_are_those_of_the_gradients_that_autograd_forms(head, draws):
    config = HypernetworkConfig(hidden_sizes=[4, 8], **head)
    model, x = HyperModel(LeNet(), Uniform(), hypernetwork=config), torch.rand(6, 1, 8, 8)
    theta = {}
    with GradientNorms(model) as watch:
        gamma = torch.rand(draws, 1)
        primary = model.at(gamma if draws > 1 else gamma[0])
        theta = primary.theta
        for tensor in theta.values():
            tensor.retain_grad()
        primary(x).square().mean().backward()
    found = {name: value.item() for name, value in watch.norms().items()}
    head_parameters = list(model.hypernetwork.head.parameters())
    assert found == pytest.approx(
        {
            "theta": norm(t.grad for t in theta.values()),
            "theta0": norm(p.grad for p in model.theta0.values()),
            "trunk": norm(p.grad for p in model.hypernetwork.trunk.parameters()),
            "head": norm(p.grad for p in head_parameters),
        },
        rel=1e-5,
    )


def test_only_the_watched_backward_pass_is_seen():
    model, x = HyperModel(nn.Linear(3, 2), Uniform()), torch.rand(4, 3)
    found = []
    for _ in range(2):
        with GradientNorms(model) as watch:
            model(x, 0.3).square().mean().backward()
        found.append({name: value.item() for name, value in watch.norms().items()})
    assert found[0] == pytest.approx(found[1])  # gradients have added up meanwhile
    model(x, 0.3).square().mean().backward()
    assert {n: v.item() for n, v in watch.norms().items()} == pytest.approx(found[1])


def test_statistics_are_those_of_numpy():
    values = torch.rand(37, dtype=torch.float64)
    found = statistics(values)
    array = values.numpy()
    assert found == pytest.approx(
        {
            "count": 37,
            "mean": array.mean(),
            "std": array.std(ddof=1),
            "coefficient_of_variation": array.std(ddof=1) / array.mean(),
            "minimum": array.min(),
            "quantile_5": np.quantile(array, 0.05),
            "quantile_25": np.quantile(array, 0.25),
            "quantile_50": np.quantile(array, 0.5),
            "quantile_75": np.quantile(array, 0.75),
            "quantile_95": np.quantile(array, 0.95),
            "maximum": array.max(),
        }
    )
    assert statistics(values[:1])["std"] == 0


class Remember(Callback):
    """Recomputes the gradient of each minibatch from the weights that training starts with."""

    def __init__(self):
        self.expected: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        primary = pl_module.model.at(pl_module.latest.gamma[0])
        theta = primary.theta
        for tensor in theta.values():
            tensor.retain_grad()
        noisy, clean = batch
        prediction = primary(noisy)
        target = clean * pl_module.latest.gamma.mean()
        nn.functional.mse_loss(prediction, target).backward()
        self.expected.append(norm(t.grad for t in theta.values()))
        pl_module.zero_grad()


def scaled() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 1e-5),
        ({"accumulate_grad_batches": 3}, 1e-5),
        ({"precision": "bf16-mixed"}, 0.05),
        ({"plugins": [scaled()]}, 0.01),
    ],
    ids=["plain", "accumulation", "bf16", "scaled fp16"],
)
def test_norms_are_of_each_minibatch_alone_and_unscaled(options, tolerance):
    class Still(Denoising):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    remember = Remember()
    t = trainer(
        max_epochs=2, callbacks=[GradientStats(), remember], default_root_dir=".", **options
    )
    t.fit(Still(nn.Linear(4, 4), Uniform()), loader(), loader())
    recorded = rows("gradient_norms.csv")
    found = [float(row["theta"]) for row in recorded]
    assert len(found) == 8
    assert found == pytest.approx(remember.expected, rel=tolerance)
    assert [int(row["batch"]) for row in recorded] == [0, 1, 2, 3] * 2


def test_an_epoch_has_its_statistics_and_the_run_its_figure():
    model = Denoising(nn.Linear(4, 4), Uniform(), theta=ThetaConfig(weight_norm=True))
    t = trainer(max_epochs=3, callbacks=[GradientStats()], default_root_dir=".")
    t.fit(model, loader(), loader())
    minibatches, epochs = rows("gradient_norms.csv"), rows("gradient_stats.csv")
    assert len(epochs) == 3 * 4
    for row in epochs:
        of_epoch = [
            float(other[row["part"]])
            for other in minibatches
            if int(other["epoch"]) + 1 == int(row["epoch"])
        ]
        found = {
            name: float(value) for name, value in row.items() if name in statistics(torch.ones(2))
        }
        assert found == pytest.approx(statistics(torch.tensor(of_epoch, dtype=torch.float64)))
        assert float(row["minimum"]) > 0
    assert matplotlib.image.imread("gradient_stats.png").shape[2] == 4
    assert t.callback_metrics["gradient_norm/head"] > 0


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("every", [0, 1, 3])
def test_loggers_get_the_norms_at_the_steps_at_which_they_get_the_loss(every, accumulated):
    logger = CSVLogger(".", name="", version="")
    options = {"log_every_n_steps": every, "accumulate_grad_batches": accumulated}
    t = trainer(max_epochs=4, logger=logger, callbacks=[GradientStats()], **options)
    t.fit(Denoising(nn.Linear(4, 4), Uniform()), loader(), loader())
    logged = rows("metrics.csv")
    steps = [row["step"] for row in logged if row.get("train_loss")]
    assert len(steps) == (16 // accumulated // every if every else 0)
    assert [row["step"] for row in logged if row.get("gradient_norm/head")] == steps


def test_only_each_nth_minibatch_is_watched():
    t = trainer(max_epochs=1, callbacks=[GradientStats(every_n_steps=3)], default_root_dir=".")
    t.fit(Denoising(nn.Linear(4, 4), Uniform()), loader(), loader())
    assert [row["batch"] for row in rows("gradient_norms.csv")] == ["0", "3"]


@pytest.mark.filterwarnings("ignore:.*training_step. returned .None")  # as it is to
def test_a_minibatch_without_a_backward_pass_leaves_no_hook_behind():
    class Skipping(Denoising):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss if batch_idx % 2 == 0 else None

    task = Skipping(nn.Linear(4, 4), Uniform())
    t = trainer(max_epochs=2, callbacks=[GradientStats()], default_root_dir=".")
    t.fit(task, loader(), loader())
    assert [row["batch"] for row in rows("gradient_norms.csv")] == ["0", "2"] * 2
    assert not task.model.hypernetwork.head._forward_hooks
    assert not any(p._backward_hooks for p in task.parameters())


def test_a_resumed_run_goes_on_with_its_rows():
    def fit(epochs: int, **options) -> None:
        torch.manual_seed(0)
        t = trainer(max_epochs=epochs, callbacks=[GradientStats()], default_root_dir=".")
        t.fit(Denoising(nn.Linear(4, 4), Uniform()), loader(), loader(), **options)
        t.save_checkpoint("last.ckpt")

    fit(2)
    fit(4, ckpt_path="last.ckpt")
    assert [int(row["epoch"]) for row in rows("gradient_stats.csv")[::4]] == [1, 2, 3, 4]
    assert [int(row["epoch"]) for row in rows("gradient_norms.csv")[::4]] == [0, 1, 2, 3]


def test_a_trial_run_writes_nothing():
    t = trainer(fast_dev_run=True, callbacks=[GradientStats()])
    t.fit(Denoising(nn.Linear(4, 4), Uniform()), loader(), loader())
    assert not list(Path().glob("gradient*"))


def test_what_is_no_hypernetwork_is_refused():
    with pytest.raises(UsageError, match="needs a HyperLightningModule"):
        GradientStats().setup(trainer(), LightningModule(), "fit")
    with pytest.raises(UsageError, match="every_n_steps=0"):
        GradientStats(every_n_steps=0)


UNEVEN = """
import sys
import torch
import torch.distributed as dist
from types import SimpleNamespace
from mip_lightning.callbacks._records import MinibatchRecords

def work(rank, size):
    dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=size)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(world_size=size, strategy=strategy)
    records = MinibatchRecords(["a", "b"])
    for row in {0: [(1, 2), (3, 4), (5, 6)], 1: [], 2: [(7, 8)]}[rank]:
        records.add([torch.tensor(float(row[0])), row[1]])
    rows = records.gather(trainer)
    assert rows.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]], rows
    assert records.gather(trainer).shape == (0, 2)
    dist.destroy_process_group()

if __name__ == "__main__":
    torch.multiprocessing.spawn(work, args=(3,), nprocs=3)
"""


def test_uneven_ranks_and_ranks_without_a_minibatch_are_gathered_whole(tmp_path):
    Path("uneven.py").write_text(UNEVEN)
    python("uneven.py", str(tmp_path / "rendezvous"))


TORCHRUN = ["-m", "torch.distributed.run", "--standalone"]

RANKS = """
import sys
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import nn
from helpers import Denoising, loader
from mip_lightning import Uniform
from mip_lightning.callbacks import GradientStats

class Still(Denoising):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

class Keep(Callback):
    def on_train_start(self, trainer, pl_module):
        self.batches = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches[trainer.current_epoch, batch_idx] = batch[0]

    def on_train_end(self, trainer, pl_module):
        torch.save(self.batches, f"batches_{trainer.global_rank}.pt")

if __name__ == "__main__":
    seed_everything(0)
    trainer = Trainer(
        strategy=sys.argv[1], devices=int(sys.argv[2]), accelerator="cpu", max_epochs=2,
        callbacks=[GradientStats(), Keep()],
    )
    model = Still(nn.Linear(4, 4), Uniform())
    torch.save(model.state_dict(), "weights.pt")
    trainer.fit(model, loader(36), loader())
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # else gloo's threads may abort the exit
"""


@pytest.mark.parametrize(
    ("start", "size"),
    [
        (["ranks.py", "ddp", "2"], 2),
        (["ranks.py", "ddp_spawn", "3"], 3),
        ([*TORCHRUN, "--nproc-per-node=2", "ranks.py", "ddp", "2"], 2),
    ],
    ids=["ddp", "ddp_spawn", "torchrun"],
)
def test_statistics_over_ranks_are_those_of_one_process_that_sees_all_minibatches(start, size):
    Path("ranks.py").write_text(RANKS)
    python(*start)
    (folder,) = Path("lightning_logs").iterdir()
    recorded = rows(folder / "gradient_norms.csv")
    model = Denoising(nn.Linear(4, 4), Uniform())
    model.load_state_dict(torch.load("weights.pt", weights_only=True))
    batches = [torch.load(f"batches_{rank}.pt", weights_only=True) for rank in range(size)]
    assert {int(row["rank"]) for row in recorded} == set(range(size))
    expected: dict[int, list[float]] = {0: [], 1: []}
    for row in recorded:
        rank, batch, epoch = int(row["rank"]), int(row["batch"]), int(row["epoch"])
        gamma = torch.tensor([float(row["gamma"])])
        primary = model.model.at(gamma)
        theta = primary.theta
        for tensor in theta.values():
            tensor.retain_grad()
        data = batches[rank][epoch, batch]
        nn.functional.mse_loss(primary(data), data * gamma).backward()
        expected[epoch].append(norm(tensor.grad for tensor in theta.values()))
        assert float(row["theta"]) == pytest.approx(expected[epoch][-1], rel=1e-5)
    for row in rows(folder / "gradient_stats.csv"):
        if row["part"] == "theta":
            values = torch.tensor(expected[int(row["epoch"]) - 1], dtype=torch.float64)
            for name, value in statistics(values).items():
                assert float(row[name]) == pytest.approx(value, rel=1e-6, abs=1e-6), name


@pytest.mark.parametrize("norm", [0.0, math.nan, math.inf])
def test_norms_that_no_logarithmic_scale_takes_are_drawn(norm, tmp_path):
    minibatches = [{"epoch": 0, "gamma": 0.1 * k, "theta": norm} for k in range(3)]
    epochs = [{"epoch": 1, "part": p, **statistics(torch.full((3,), norm))} for p in PARTS]
    plot_gradient_statistics(epochs, minibatches, ("gamma",)).savefig(tmp_path / "x.png")
