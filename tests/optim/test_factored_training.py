"""Training with the head's gradient in factors: by the Trainer, from the command line, on ranks."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import ROOT, LossAlone, loader, trainer
from helpers import large_head_task as task
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from mip_lightning import ChunkedHead, HypernetworkConfig
from mip_lightning.cli._schedule import ScheduleConfig, make_optimizer
from mip_lightning.functional.factored_gradient import FactoredGradient
from mip_lightning.optim.optimizers import FactoredAdam, FactoredAdamW, FactoredSGD


@pytest.fixture(autouse=True)
def _small_weights_have_factors(monkeypatch):
    monkeypatch.setattr("mip_lightning.functional.linear.MIN_FACTORED", 2**16)


class WithTorchsAdam(LossAlone):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameter_groups(), lr=3e-4, fused=True)


class Gradients(Callback):
    def __init__(self):
        self.kinds = set()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.kinds.add(type(pl_module.model.hypernetwork.head.weight.grad))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 1e-3},
        {"gradient_clip_val": 1e-5, "gradient_clip_algorithm": "value"},
        {"precision": "bf16-mixed"},
    ],
    ids=["plain", "accumulated and clipped", "clipped by value", "mixed precision"],
)
def test_a_fit_gives_the_weights_that_torchs_adam_gives(options):
    weights, gradients = [], Gradients()
    for kind in (LossAlone, WithTorchsAdam):
        module = task(kind)
        trainer(max_epochs=3, callbacks=[gradients], **options).fit(module, loader(), loader())
        weights.append(list(module.parameters()))
    assert gradients.kinds == {FactoredGradient, torch.Tensor}  # ours and torch's
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_scaled_loss_is_unscaled_before_clipping_which_torchs_fused_adam_does_not_allow():
    def fit(kind, scale):
        precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", scale))
        module, gradients = task(kind), Gradients()
        options = {"max_epochs": 2, "gradient_clip_val": 1e-3, "callbacks": [gradients]}
        trainer(plugins=[precision], **options).fit(module, loader(), loader())
        assert gradients.kinds == {FactoredGradient}
        return list(module.parameters())

    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit(WithTorchsAdam, 256.0)
    for a, b in zip(fit(LossAlone, 256.0), fit(LossAlone, 1.0), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)


def test_a_resumed_fit_gives_the_weights_of_the_undisturbed_one_whichever_adam_went_before():
    def fit(kind, epochs, resume=None):
        module, t = task(kind), trainer(max_epochs=epochs)
        t.fit(module, loader(), loader(), ckpt_path=resume, weights_only=True if resume else None)
        return module, t

    whole, _ = fit(LossAlone, 4)
    for first in (LossAlone, WithTorchsAdam):
        fit(first, 2)[1].save_checkpoint("half.ckpt")
        resumed, _ = fit(LossAlone, 4, "half.ckpt")
        for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


class WithRMSprop(LossAlone):
    def configure_optimizers(self):
        return torch.optim.RMSprop(self.parameter_groups())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (task, "is kept as factors: FactoredAdam updates it from them"),
        (
            lambda: task(draws_per_batch="one_per_sample"),
            "is kept as factors, in batches of up to 115 samples: FactoredAdam",
        ),
        (
            lambda: task(WithRMSprop),
            "written out: RMSprop takes no factors, as FactoredAdam, ",
        ),
        (
            lambda: task(hypernetwork=HypernetworkConfig([4])),
            "written out: it is so small",
        ),
        (
            lambda: task(hypernetwork=HypernetworkConfig(head=ChunkedHead)),
            "written out: only one of a single matrix",
        ),
    ],
    ids=["factored", "by sample", "other optimizer", "small", "chunked"],
)
def test_a_line_at_the_start_says_how_the_head_is_updated(make, says, caplog):
    with caplog.at_level("INFO"):
        trainer(max_epochs=1, limit_train_batches=1).fit(make(), loader(), loader())
    (line,) = [m for m in caplog.messages if m.startswith("The head's gradient")]
    assert says in line


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("torch.optim.Adam", {"lr": 1e-2, "fused": None}, FactoredAdam),
        ("torch.optim.AdamW", {"weight_decay": 0.3, "betas": (0.8, 0.9)}, FactoredAdamW),
        ("torch.optim.SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}, FactoredSGD),
        ("torch.optim.Adam", {"fused": False}, FactoredAdam),
        ("torch.optim.RMSprop", {"alpha": 0.5}, torch.optim.RMSprop),
        ("mip_lightning.optim.optimizers.FactoredAdam", {"moments": "bfloat16"}, FactoredAdam),
    ],
)
def test_the_command_line_takes_the_factored_kin_of_an_optimizer(name, options, kind):
    module = task(group_options={"theta0": {"lr": 1e-5}})
    step = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 2}}
    module.optimizer_factory = partial(
        make_optimizer,
        optimizer_init={"class_path": name, "init_args": options},
        scheduler_init=step,
        schedule=ScheduleConfig(),
    )
    run = trainer(max_epochs=1, limit_train_batches=1)
    run.fit(module, loader(), loader())
    ((optimizer,), (configured,)) = run.optimizers, run.lr_scheduler_configs
    scheduler = configured.scheduler
    assert type(optimizer) is kind
    assert scheduler.optimizer is optimizer
    for option, value in options.items():
        expected = True if option == "fused" and value is None else value
        assert optimizer.defaults[option] == expected
    by_name = {group["name"]: group for group in optimizer.param_groups}
    assert by_name["theta0"]["lr"] == 1e-5
    assert by_name["head"]["lr"] == optimizer.defaults["lr"]


RANKS = """
import logging
import torch
from lightning.pytorch import Callback, Trainer
from helpers import large_head_task, loader
from mip_lightning.functional import linear

linear.MIN_FACTORED = 2**16

class Compare(Callback):
    steps = 0

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        assert type(pl_module.model.hypernetwork.head.weight.grad) is torch.Tensor

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps += 1
        for parameter in pl_module.parameters():
            both = trainer.strategy.all_gather(parameter.detach())
            assert torch.equal(both[0], both[1])

if __name__ == "__main__":
    compare = Compare()
    trainer = Trainer(
        max_epochs=5, accelerator="cpu", strategy="ddp", devices=2, callbacks=[compare]
    )
    trainer.fit(large_head_task(), loader(64, 8), loader())
    assert compare.steps == 20
    torch.distributed.destroy_process_group()  # else gloo's threads may abort the exit
"""


def test_two_ranks_keep_bit_equal_weights_over_20_steps():
    Path("ranks.py").write_text(RANKS)
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "ranks.py"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "written out: 2 ranks average it" in done.stdout + done.stderr


def test_moments_in_bfloat16_train_from_the_trainer():
    class Half(LossAlone):
        def configure_optimizers(self):
            return FactoredAdam(self.parameter_groups(), lr=3e-4, moments="bfloat16")

    module, t = task(Half), trainer(max_epochs=2)
    t.fit(module, loader(), loader())
    state = t.optimizers[0].state
    assert state[module.model.hypernetwork.head.weight]["exp_avg_sq"].dtype == torch.bfloat16
    assert state[next(iter(module.model.theta0.values()))]["exp_avg"].dtype == torch.float32
    assert all(isinstance(p, nn.Parameter) and p.isfinite().all() for p in module.parameters())
