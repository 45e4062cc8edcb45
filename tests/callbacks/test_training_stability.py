import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers import Disturbed, loader, python, rows, trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from mip_lightning import UsageError
from mip_lightning.callbacks import NonFiniteError, TrainingStability


def fit(disturbances, *, epochs=12, callbacks=(), enable_checkpointing=False, **options):
    trainer_options = {"enable_checkpointing": enable_checkpointing, "default_root_dir": "."}
    model = Disturbed(disturbances)
    stability = TrainingStability(**options)
    t = trainer(max_epochs=epochs, callbacks=[stability, *callbacks], **trainer_options)
    t.fit(model, loader(), loader())
    return model, t


def test_spikes_are_found_with_their_place_and_gamma():
    _, t = fit({30: 5.0, 41: 50.0}, every_n_steps=7)
    found = rows("training_stability.csv")
    assert [(r["step"], r["epoch"], r["batch"], r["event"]) for r in found] == [
        ("31", "7", "2", "spike"),
        ("42", "10", "1", "spike"),
    ]
    for row in found:
        assert 0 <= float(row["gamma"]) <= 1
        assert float(row["loss"]) > 4 > float(row["running_median"])
    assert t.callback_metrics["loss_spikes"] == 2


def test_an_ordinary_loss_has_no_spikes():
    _, t = fit({})
    assert rows("training_stability.csv") == []
    assert t.callback_metrics["loss_spikes"] == 0


def test_the_judgement_is_by_the_median_and_the_median_absolute_deviation():
    stability = TrainingStability(threshold=3.0, window=40)
    history = torch.randn(40, generator=torch.Generator().manual_seed(0)).double() + 10
    stability._history.extend(history.tolist())
    median = history.quantile(0.5).item()
    mad = (history - median).abs().quantile(0.5).item()
    edge = median + 3.0 * 1.4826 * mad
    assert stability._classify(edge - 1e-6, 1.0) == (pytest.approx(median), None)
    stability._history.extend([])
    stability._history = type(stability._history)(history.tolist(), maxlen=40)
    assert stability._classify(edge + 1e-6, 1.0) == (pytest.approx(median), "spike")


@pytest.mark.parametrize(
    ("disturbance", "event"),
    [(math.nan, "loss not finite"), (math.inf, "loss not finite"), ("gradient", "gradient not")],
)
def test_a_run_stops_where_the_loss_or_gradient_is_not_finite(disturbance, event):
    checkpoint = ModelCheckpoint("checkpoints", save_last=True, every_n_epochs=1)
    place = r" at step 10 \(epoch 2, batch 1, rank 0, gamma"
    with pytest.raises(NonFiniteError, match=rf"{event}.*{place}") as error:
        fit({9: disturbance}, callbacks=[checkpoint], enable_checkpointing=True)
    message = str(error.value)
    path = message.split("go on from ")[1].split(" with")[0]
    saved = torch.load(path, weights_only=True)
    assert saved["epoch"] == 1
    for file in Path("checkpoints").iterdir():
        state = torch.load(file, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values()), file


@pytest.mark.parametrize("weights_only", [False, True])
def test_no_checkpoint_within_an_epoch_is_of_broken_weights_and_the_newest_is_named(weights_only):
    often = ModelCheckpoint(
        "often", "{step}", save_top_k=-1, every_n_train_steps=2, save_weights_only=weights_only
    )
    rare = ModelCheckpoint("rare", "{epoch}", every_n_epochs=2)
    with pytest.raises(NonFiniteError, match=r"step 11 .*go on from .*often/step=10\.ckpt"):
        fit({10: math.nan}, callbacks=[rare, often], enable_checkpointing=True)
    assert {file.name for file in Path("often").iterdir()} == {
        f"step={step}.ckpt" for step in (2, 4, 6, 8, 10)
    }


@pytest.mark.parametrize("disturbance", [math.nan, "gradient"])
def test_a_step_that_is_not_finite_is_skipped_if_asked_for(disturbance):
    model, _ = fit({9: disturbance, 10: disturbance}, on_non_finite="skip")
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert [row["step"] for row in rows("training_stability.csv")] == ["10", "11"]


def test_a_skipped_step_changes_no_weight():
    seen = []

    class Watch(TrainingStability):
        def on_train_batch_end(self, trainer, pl_module, *args):
            super().on_train_batch_end(trainer, pl_module, *args)
            seen.append([p.detach().clone() for p in pl_module.parameters()])

    t = trainer(max_epochs=1, callbacks=[Watch(on_non_finite="skip")])
    t.fit(Disturbed({2: math.nan}), loader(), loader())
    same = [all(torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in pairwise(seen)]
    assert same == [False, True, False]


def test_a_resumed_run_goes_on_with_its_events():
    _, t = fit({30: 5.0}, epochs=8)
    t.save_checkpoint("last.ckpt")
    t = trainer(max_epochs=16, callbacks=[TrainingStability()], default_root_dir=".")
    t.fit(Disturbed({25: 50.0}), loader(), loader(), ckpt_path="last.ckpt")
    assert [row["step"] for row in rows("training_stability.csv")] == ["31", "58"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"threshold": 0}, "threshold=0"),
        ({"window": 5}, "window=5"),
        ({"every_n_steps": 0}, "every_n_steps=0"),
    ],
)
def test_an_impossible_setting_is_refused(options, says):
    with pytest.raises(UsageError, match=says):
        TrainingStability(**options)


RANKS = """
import math
import sys
import torch
from lightning.pytorch import Trainer, seed_everything
from mip_lightning.callbacks import TrainingStability
from helpers import Disturbed, loader

class OnOneRank(Disturbed):
    def loss(self, batch, primary):
        if self.global_rank == 0:
            self.disturbances = {}
        return super().loss(batch, primary)

if __name__ == "__main__":
    seed_everything(0)
    trainer = Trainer(
        strategy="ddp", devices=2, accelerator="cpu", max_epochs=3,
        callbacks=[TrainingStability(on_non_finite=sys.argv[1])],
    )
    model = OnOneRank({2: math.nan})
    try:
        trainer.fit(model, loader(), loader())
    except Exception as error:
        assert "loss not finite at step 3 (epoch 1, batch 0, rank 1, gamma" in str(error), error
        assert sys.argv[1] == "stop"
    else:
        assert sys.argv[1] == "skip"
        assert all(value.isfinite().all() for value in model.state_dict().values())
    torch.distributed.destroy_process_group()  # else gloo's threads may abort the exit
"""


@pytest.mark.parametrize("reaction", ["stop", "skip"])
def test_all_ranks_stop_or_skip_together_and_name_the_rank(reaction):
    Path("ranks.py").write_text(RANKS)
    python("ranks.py", reaction)
    first = rows("lightning_logs/version_0/training_stability.csv")[0]
    assert (first["rank"], first["step"]) == ("1", "3")
