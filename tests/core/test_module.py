from pathlib import Path

import pytest
import torch
from helpers import Denoising, LossAlone, bayesian_task, image_loader, loader, trainer
from lightning.pytorch import Callback, seed_everything
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torchmetrics import MeanSquaredError

from mip_lightning import (
    HyperLightningModule,
    HypernetworkConfig,
    StepOutput,
    ThetaConfig,
    Uniform,
    UsageError,
)
from mip_lightning.callbacks.run_progress_bar import _progress
from mip_lightning.core import TrainingBatch, batch_size, without_logging
from mip_lightning.networks import MultilayerPerceptron
from mip_lightning.tasks import BayesianClassification


class Draws(Callback):
    def __init__(self):
        self.gammas: list[list[float]] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.gammas.append(pl_module.sample_gamma(batch, batch_idx).flatten().tolist())
        self.losses.append(float(outputs["loss"]))


def test_a_task_is_a_loss_and_it_learns():
    draws = Draws()
    task = LossAlone(nn.Linear(4, 4), Uniform(0, 1))
    trainer(max_epochs=40, callbacks=[draws]).fit(task, loader(), loader())
    assert sum(draws.losses[-8:]) < 0.5 * sum(draws.losses[:8])


def test_validation_logs_each_metric_averaged_over_gamma_and_at_the_best_gamma():
    task = Denoising(nn.Linear(4, 4), Uniform(0, 1), validation_grid_size=3)
    (logged,) = trainer().validate(task, loader(20, 8), verbose=False)
    x = loader(20, 20).dataset.tensors[0]
    with torch.no_grad():
        direct = [
            F.mse_loss(task.model(x, g), x * g).item() for g in torch.tensor([[0.0], [0.5], [1.0]])
        ]
    # Batches of 8, 8 and 4: each counts by its size.
    assert logged["val_loss"] == pytest.approx(sum(direct) / 3, rel=1e-5)
    assert logged["val_mse"] == pytest.approx(sum(direct) / 3, rel=1e-5)
    assert logged["val_mse_best"] == pytest.approx(min(direct), rel=1e-5)
    torch.testing.assert_close(
        task.evaluation("val").result.curves["mse"].values, torch.tensor(direct)
    )
    assert task.evaluation("val").result.curves["mse"].best == direct.index(min(direct))


def test_a_sweep_starts_anew_after_each_evaluation():
    task = Denoising(nn.Linear(4, 4), Uniform(0, 1))
    first, second = (trainer().test(task, loader(), verbose=False) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("draws", [1, 4, "one_per_sample"])
def test_a_training_batch_draws_as_many_gammas_as_asked_for(draws):
    seen = Draws()
    task = Denoising(nn.Linear(4, 4), Uniform(0, 1), draws_per_batch=draws)
    trainer(callbacks=[seen]).fit(task, loader(), loader())
    expected = 8 if draws == "one_per_sample" else draws
    assert [len(gamma) for gamma in seen.gammas] == [expected] * 4
    assert len({gamma[0] for gamma in seen.gammas}) == 4


def test_a_batch_that_draws_do_not_divide_is_refused():
    task = Denoising(nn.Linear(4, 4), Uniform(0, 1), draws_per_batch=3)
    with pytest.raises(UsageError, match=r"3 draws.*drop_last"):
        trainer().fit(task, loader(), loader())


def test_a_resumed_run_draws_what_the_undisturbed_one_would_have_drawn():
    def run(epochs, resume=None, seed=0):
        seed_everything(seed, verbose=False)
        draws = Draws()
        task = Denoising(nn.Linear(4, 4), Uniform(0, 1))
        t = trainer(max_epochs=epochs, callbacks=[draws])
        t.fit(task, loader(), loader(), ckpt_path=resume, weights_only=True if resume else None)
        return t, draws.gammas, task

    _, undisturbed, whole = run(4)
    first, before, _ = run(2)
    first.save_checkpoint("half.ckpt")
    _, after, resumed = run(4, "half.ckpt", seed=1)  # a resumed run need not know the seed
    assert before + after == undisturbed
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


class Batches(Callback):
    """Keeps the training batches."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(batch[0].clone())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_takes_the_batches_and_dropout_of_the_undisturbed_one(workers):
    def run(epochs, resume=None, seed=0):
        seed_everything(seed, verbose=False)
        data = DataLoader(loader().dataset, 8, shuffle=True, num_workers=workers)
        batches = Batches()
        task = Denoising(nn.Sequential(nn.Linear(4, 4), nn.Dropout()), Uniform(0, 1))
        t = trainer(max_epochs=epochs, callbacks=[batches])
        t.fit(task, data, loader(), ckpt_path=resume, weights_only=True if resume else None)
        t.save_checkpoint("last.ckpt")
        return batches.seen, task

    undisturbed, whole = run(4)
    before, _ = run(2)
    after, resumed = run(4, "last.ckpt", seed=1)
    for a, b in zip(undisturbed, before + after, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_ranks_that_share_gamma_draw_it_from_the_seed_of_the_first(monkeypatch):
    task = Denoising(nn.Linear(4, 4), Uniform(0, 1))
    t = trainer()
    monkeypatch.setattr(t.strategy, "broadcast", lambda value, src=0: 7)
    t.fit(task, loader(), loader())
    assert task.gamma_seed == 7


@pytest.mark.parametrize("monitor", ["val_mse", "val_mse_best"])
def test_the_progress_bar_shows_what_chooses_the_checkpoint(monitor, monkeypatch):
    monkeypatch.setattr(Denoising, "monitor", monitor)
    t = trainer()
    t.fit(Denoising(nn.Linear(4, 4), Uniform(0, 1)), loader(), loader())
    assert monitor in t.progress_bar_metrics


def test_the_progress_bar_waits_for_no_other_rank(monkeypatch):
    """Where others run too, a metric's ``compute`` waits for them, and they have no bar."""
    monkeypatch.setattr("torchmetrics.metric.jit_distributed_available", lambda: True)

    class Monitored(Denoising):
        monitor = "val_mse"

        def configure_metrics(self):
            return {"mse": MeanSquaredError() * 2.0}  # one metric within another

    task = Monitored(nn.Linear(4, 4), Uniform(0, 1))
    x = torch.rand(8, 4)
    output = StepOutput(torch.tensor(1.0), x, x + 1.0)
    task.latest = TrainingBatch(torch.tensor([[0.5]]), output)
    with pytest.raises(ValueError, match="process group"):
        task.evaluation("val").finish({})
    assert _progress(task)["train_mse"] == pytest.approx(2.0)


def test_draws_differ_between_epochs_ranks_and_seeds(monkeypatch):
    task = Denoising(nn.Linear(4, 4), Uniform(0, 1))
    batch = next(iter(loader()))
    drawn = {float(task.sample_gamma(batch, index)) for index in range(3)}
    for name, value in (("current_epoch", 1), ("global_rank", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(type(task), name, value)
            drawn.add(float(task.sample_gamma(batch, 0)))
    task.gamma_seed += 1
    drawn.add(float(task.sample_gamma(batch, 0)))
    assert len(drawn) == 6


def test_a_gamma_that_a_user_gives_is_checked_and_a_drawn_one_is_not():
    class Unchecked(Uniform):
        def check_values(self, gamma):
            raise AssertionError("checked")

    task = Denoising(nn.Linear(4, 4), Unchecked(0, 1))
    t = trainer()
    t.fit(task, loader(), loader())
    with pytest.raises(AssertionError, match="checked"):
        task(torch.rand(2, 4), 0.5)


def test_a_checkpoint_holds_plain_values_and_rebuilds_the_module():
    task = Denoising(nn.Linear(4, 4), Uniform(0, 1), "default")
    t = trainer()
    t.fit(task, loader(), loader())
    t.save_checkpoint("task.ckpt")
    torch.load("task.ckpt", weights_only=True)
    again = Denoising.load_from_checkpoint(
        "task.ckpt", primary=nn.Linear(4, 4), prior=Uniform(0, 1)
    )
    assert again.model.formulation == "default"
    x = torch.rand(3, 4)
    assert torch.equal(again(x, 0.2), task(x, 0.2))


def test_the_checkpoint_of_another_primary_is_refused_by_the_names_of_its_tensors():
    task = Denoising(nn.Linear(4, 4), Uniform(0, 1))
    t = trainer()
    t.fit(task, loader(), loader())
    t.save_checkpoint("task.ckpt")
    with pytest.raises(
        UsageError, match=r"model.primary.weight is \(4, 4\) there, \(3, 4\) here"
    ) as error:
        Denoising.load_from_checkpoint("task.ckpt", primary=nn.Linear(4, 3), prior=Uniform(0, 1))
    assert "\n" not in str(error.value)


def test_the_default_optimizer_is_a_fused_adam():
    optimizer = Denoising(nn.Linear(4, 4), Uniform(0, 1)).configure_optimizers()
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.defaults["fused"]
    assert optimizer.defaults["lr"] == 3e-4


def test_a_checkpoint_of_another_prior_or_trunk_is_refused():
    t = trainer()
    t.fit(Denoising(nn.Linear(4, 4), Uniform(0, 1)), loader(), loader())
    t.save_checkpoint("task.ckpt")

    def load(**arguments):
        plain = {"primary": nn.Linear(4, 4), "prior": Uniform(0, 1)}
        return Denoising.load_from_checkpoint("task.ckpt", **{**plain, **arguments})

    load(prior=Uniform(0, 1, clamp=True))  # how a gamma is checked is no part of the weights
    with pytest.raises(UsageError, match=r"prior is Uniform\(low=0.0, high=1.*high=2"):
        load(prior=Uniform(0, 2))
    with pytest.raises(UsageError, match=r"trunk is .*LeakyReLU.*Tanh"):
        load(hypernetwork=HypernetworkConfig(activation="Tanh"))


def test_a_training_step_looks_at_no_value():
    steps: list[int] = []
    looks: list[int] = []

    class Looks(TorchDispatchMode):
        """Sees ``item``, ``float``, ``int``, ``bool`` and ``tolist`` of a tensor."""

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._local_scalar_dense.default:
                looks.append(len(steps))
            return func(*args, **(kwargs or {}))

    class Count(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            steps.append(batch_idx)

    task = Denoising(nn.Linear(4, 4), Uniform(0, 1))
    t = trainer(callbacks=[Count()], limit_val_batches=0)
    with Looks():
        t.fit(task, loader(80, 8), loader())
    assert len(steps) == 10
    assert looks  # around the epoch, so that they are seen
    assert [look for look in looks if 0 < look < 10] == []  # none but around the epoch


def test_a_loss_that_is_not_a_number_is_shown_as_such():
    class Diverging(Denoising):
        def loss(self, batch, primary):
            output = super().loss(batch, primary)
            # In one batch only: were it left out, the others would give a finite mean.
            return output._replace(loss=output.loss * (torch.nan if len(batch[0]) == 4 else 1))

    (logged,) = trainer().test(
        Diverging(nn.Linear(4, 4), Uniform(0, 1)), loader(20, 8), verbose=False
    )
    assert logged["test_loss"] != logged["test_loss"]
    assert logged["test_mse"] == logged["test_mse"]


def test_a_task_without_predictions_says_so():
    with pytest.raises(UsageError, match="Denoising does not say how to predict"):
        trainer().predict(Denoising(nn.Linear(4, 4), Uniform(0, 1)), loader())


def test_a_metric_may_not_take_the_name_of_the_loss():
    class Clash(Denoising):
        def configure_metrics(self):
            return {"loss": MeanSquaredError()}

    task = Clash(nn.Linear(4, 4), Uniform(0, 1))
    with pytest.raises(UsageError, match="'loss'"):
        trainer().fit(task, loader(), loader())


def test_no_draw_at_all_is_refused():
    with pytest.raises(UsageError, match="draws_per_batch=0"):
        Denoising(nn.Linear(4, 4), Uniform(0, 1), draws_per_batch=0)


def test_the_size_of_a_batch_is_the_length_of_its_first_tensor():
    assert batch_size({"names": "abc", "images": [torch.rand(5, 2)]}) == 5
    with pytest.raises(UsageError, match="str"):
        batch_size("abc")


def test_nothing_is_written_that_nobody_asked_for():
    trainer().fit(Denoising(nn.Linear(4, 4), Uniform(0, 1)), loader(), loader())
    assert list(Path().iterdir()) == []


class Predictions:
    """Counts how often weights are predicted."""

    def __init__(self, task: HyperLightningModule) -> None:
        self.count = 0
        task.model.hypernetwork.register_forward_hook(self._add)

    def _add(self, *_) -> None:
        self.count += 1


@pytest.mark.parametrize(
    ("hidden_sizes", "kept", "predicted"),
    [((4, 8), 0, 5), ((4, 1), 0, 1 + 4 * 4), ((4, 1), 3 * 20, 3 + 2 * 4), ((4, 1), 2**24, 5)],
)
def test_evaluation_predicts_the_weights_once_at_as_many_gammas_as_it_may_keep(
    hidden_sizes, kept, predicted, monkeypatch
):
    monkeypatch.setattr("mip_lightning.core._primary_cache.MIN_CACHED_WEIGHTS", kept)
    task = Denoising(
        nn.Linear(4, 4),
        Uniform(0, 1),
        hypernetwork=HypernetworkConfig(hidden_sizes=hidden_sizes),
        validation_grid_size=5,
    )
    predictions = Predictions(task)
    trainer().validate(task, loader(32, 8), verbose=False)
    assert predictions.count == predicted


def test_weights_that_were_predicted_for_an_evaluation_are_not_those_of_the_next():
    task = Denoising(nn.Linear(4, 4), Uniform(0, 1), validation_grid_size=3)
    once = trainer()
    (before,) = once.validate(task, loader(), verbose=False)
    with torch.no_grad():
        task.model.primary.bias += 1.0
    (after,) = once.validate(task, loader(), verbose=False)
    x = loader(32, 32).dataset.tensors[0]
    with torch.no_grad():
        direct = [F.mse_loss(task.model(x, g), x * g) for g in torch.tensor([[0.0], [0.5], [1.0]])]
    assert after["val_mse"] == pytest.approx(torch.stack(direct).mean().item(), rel=1e-5)
    assert before["val_mse"] != pytest.approx(after["val_mse"], rel=0.1)
    assert not task.evaluation("val").primaries._kept


class BrokenOff(Callback):
    """Breaks off an evaluation at its third batch."""

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 2:
            raise RuntimeError("broken off")

    on_predict_batch_start = on_validation_batch_start


def test_an_evaluation_that_was_broken_off_leaves_nothing_to_the_next():
    task = Denoising(nn.Linear(4, 4), Uniform(0, 1), validation_grid_size=3)
    (before,) = trainer().validate(task, loader(), verbose=False)
    with torch.no_grad():
        task.model.primary.bias += 1.0
    with pytest.raises(RuntimeError, match="broken off"):
        trainer(callbacks=[BrokenOff()]).validate(task, loader(), verbose=False)
    with torch.no_grad():
        task.model.primary.bias -= 1.0
    (after,) = trainer().validate(task, loader(), verbose=False)
    assert after == pytest.approx(before, rel=1e-5)


def test_predictions_after_one_that_was_broken_off_are_those_of_the_weights_as_they_are():
    class Predicting(Denoising):
        grid = torch.tensor([[0.5]])

        def predict_step(self, batch, batch_idx):
            (primary,) = self.predict_primaries(self.grid)
            return primary(batch[0])

    task, batch = Predicting(nn.Linear(4, 4), Uniform(0, 1)).eval(), next(iter(loader()))
    with pytest.raises(RuntimeError, match="broken off"):
        trainer(callbacks=[BrokenOff()]).predict(task, loader())
    with torch.no_grad():
        before = task.predict_step(batch, 0)
        task.model.primary.bias += 1.0
        torch.testing.assert_close(task.predict_step(batch, 0), before + 1.0)


@pytest.mark.parametrize("first", [True, False])
def test_a_call_without_gradient_within_a_loss_takes_no_gradient_from_the_other(first):
    class Consistent(LossAlone):
        def loss(self, batch, primary):
            if first:
                with torch.no_grad():
                    teacher = primary(batch[0])
            student = primary(batch[0])
            if not first:
                with torch.no_grad():
                    teacher = primary(batch[0])
            assert torch.equal(student, teacher)
            return F.mse_loss(student, teacher.roll(1, dims=1))

    task = Consistent(nn.Linear(4, 4), Uniform(0, 1), theta=ThetaConfig(weight_decay=0.1))
    with without_logging(task), without_logging(task):
        task.training_step(next(iter(loader())), 0).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in task.model.theta0.values())
    assert task.model.hypernetwork.head.weight.grad.abs().sum() > 0


def test_training_goes_on_between_validations_with_weights_of_its_own():
    task = Denoising(nn.Linear(4, 4), Uniform(0, 1), validation_grid_size=2)
    predictions = Predictions(task)
    trainer(max_epochs=3, val_check_interval=2).fit(task, loader(32, 8), loader(32, 8))
    sanity, training, validations = 2, 3 * 4, 3 * 2 * 2
    assert predictions.count == sanity + training + validations


def test_a_network_that_cannot_be_copied_makes_a_task():
    """Old weight normalization keeps a computed tensor once it was called."""
    with pytest.warns(FutureWarning, match="weight_norm"):
        network = nn.utils.weight_norm(nn.Linear(4, 4))
    network(torch.rand(1, 4))
    task = LossAlone(network, Uniform(0, 1))
    assert task.hparams["draws_per_batch"] == 1
    assert "primary" not in task.hparams


def test_the_primary_of_a_task_is_not_copied(monkeypatch):
    copied = []
    monkeypatch.setattr(nn.Linear, "__deepcopy__", lambda *args: copied.append(1), raising=False)
    LossAlone(nn.Linear(4, 4), Uniform(0, 1))
    assert not copied


def test_a_checkpoint_that_lacks_a_tensor_loads_where_it_need_not_be_strict():
    task = bayesian_task()
    t = trainer()
    t.fit(task, image_loader(), image_loader())
    t.save_checkpoint("task.ckpt")
    content = torch.load("task.ckpt", weights_only=True)
    del content["state_dict"]["model.hypernetwork.head.weight"]
    torch.save(content, "less.ckpt")
    given = {
        "primary": MultilayerPerceptron(6, 3),
        "prior": Uniform(0, 1),
        "weights_only": True,
    }
    with pytest.warns(UserWarning, match="not in the checkpoint"):  # Lightning's
        BayesianClassification.load_from_checkpoint("less.ckpt", strict=False, **given)
    with pytest.raises(UsageError, match=r"head\.weight is missing there"):
        BayesianClassification.load_from_checkpoint("less.ckpt", **given)
    with pytest.raises(UsageError, match="checkpoint's prior is"):
        BayesianClassification.load_from_checkpoint(
            "task.ckpt", **{**given, "prior": Uniform(0, 2)}
        )
