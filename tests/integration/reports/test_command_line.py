"""Public reports on Lightning's command line, checkpoints and schedules."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT, rows
from lightning.pytorch import Callback

from mip_lightning.cli.main import main

QUICK = str(ROOT / "tests" / "conf" / "quick.yaml")
LITTLE = ("fit", "--config", QUICK)  # two epochs of three batches


class Rates(Callback):
    """Keeps the learning rate of each step."""

    seen: list[float] = []  # noqa: RUF012  # of the class, which the command line builds

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def one_line(capsys: pytest.CaptureFixture, *args: str) -> str:
    with pytest.raises(SystemExit) as exit_info:
        main(args)
    code = exit_info.value.code
    message = code if isinstance(code, str) else capsys.readouterr().err
    (line,) = [line for line in message.splitlines() if line.strip()]
    assert line.startswith("mip-lightning: error: ")
    assert not Path("runs").exists() or not list(Path("runs").glob("*/*/checkpoints"))
    return line


def rates_of(*args: str) -> list[float]:
    Rates.seen.clear()
    own = ("--trainer.callbacks+", f"{__name__}.Rates")
    main([*LITTLE, *own, *args])
    return list(Rates.seen)


def test_one_cycle_moves_at_each_step():
    """PyTorch issue 65417: stepped once an epoch, it stayed at its first rate."""
    options = ("--lr_scheduler", "OneCycleLR", "--lr_scheduler.max_lr", "0.1")
    found = rates_of(*options, "--lr_scheduler.total_steps", "6", "--trainer.max_steps", "6")
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.Adam([parameter], lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=6)
    expected = []
    for _ in range(6):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), [0.01] * 3 + [0.001] * 3),
        (
            ("--schedule.interval", "step", "--schedule.frequency", "2"),
            [1e-2] * 2 + [1e-3] * 3 + [1e-4],
        ),
    ],
)
def test_interval_and_frequency_are_to_be_had_from_the_command_line(options, expected):
    # By its path: MONAI, once it is imported, has a class of that name too.
    name = "torch.optim.lr_scheduler.ExponentialLR"
    decay = ("--lr_scheduler", name, "--lr_scheduler.gamma", "0.1")
    assert rates_of(*decay, *options) == pytest.approx(expected)


def test_a_schedule_that_does_not_finish_is_said_at_the_start():
    with pytest.warns(UserWarning, match=r"T_max=50, and this run moves it 2 times.*T_max=2"):
        rates_of("--lr_scheduler", "CosineAnnealingLR", "--lr_scheduler.T_max", "50")


def test_a_schedule_that_ends_before_the_run_is_refused(capsys):
    options = ("--lr_scheduler", "OneCycleLR", "--lr_scheduler.max_lr", "0.1")
    line = one_line(capsys, *LITTLE, *options, "--lr_scheduler.total_steps", "3")
    assert "OneCycleLR has total_steps=3, and this run moves it 6 times" in line


def test_a_schedule_that_lacks_arguments_is_refused(capsys):
    options = ("--lr_scheduler", "OneCycleLR", "--lr_scheduler.max_lr", "0.1")
    assert "OneCycleLR cannot be made" in one_line(capsys, *LITTLE, *options)
    plateau = ("--lr_scheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau")
    assert "give --schedule.monitor val_loss" in one_line(capsys, *LITTLE, *plateau)


def test_a_best_checkpoint_of_other_weights_is_refused(capsys):
    """Lightning issue 20185: chosen by a metric that was measured on earlier weights."""
    line = one_line(capsys, *LITTLE, "--checkpoint.every_n_train_steps", "2")
    assert "every_n_train_steps=2 saves between validations" in line
    own = ("--trainer.callbacks+", "ModelCheckpoint", "--trainer.callbacks.monitor", "val_loss")
    line = one_line(capsys, *LITTLE, *own, "--trainer.callbacks.every_n_train_steps", "2")
    assert "ModelCheckpoint: every_n_train_steps=2" in line


def test_the_root_folder_that_is_named_holds_the_runs():
    """It had no effect."""
    main([*LITTLE, "--trainer.default_root_dir", "elsewhere"])
    assert Path("elsewhere/runs/quick/version_0/checkpoints/best.ckpt").is_file()
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--trainer.max_epochs", "0"), "max_epochs=0: nothing is trained, and no checkpoint"),
        (("--trainer.check_val_every_n_epoch", "5"), "validates after 15 batches: no best"),
        (("--trainer.max_steps", "2"), "ends after 2 batches and validates after 3"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")  # Lightning's, at the end
def test_a_run_that_will_have_no_best_checkpoint_says_so_at_the_start(options, says):
    """Nothing was saved, and nothing said."""
    with pytest.warns(UserWarning, match=says):
        main([*LITTLE, *options])
    assert not list(Path("runs").glob("*/*/checkpoints/best.ckpt"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--trainer.accelerator", "nope"), "invalid accelerator name"),
        (("--trainer.accelerator", "tpu"), "mip-lightning: error: "),
        (("--trainer.devices", "0"), "devices"),
        (("--trainer.logger", "WandbLogger"), "wandb"),
        (("--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor", "val_acc"),
         "EarlyStopping monitors 'val_acc', which validation does not log: it logs val_accuracy"),
        (("--trainer.callbacks+", "ModelCheckpoint", "--trainer.callbacks.monitor", "val_acc"),
         "ModelCheckpoint monitors 'val_acc'"),
        (("--checkpoint.monitor", "val_loss"), "checkpoint.monitor is the task's own"),
        (("--optimizer.lr", "abc"), "--optimizer.lr: Expected a <class 'float'>. Got value: abc"),
        (("--model.prior.lowest", "1"), "--model.prior.lowest"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line_before_training(options, says, capsys):
    """They were tracebacks, or lines without the place."""
    assert says in one_line(capsys, *LITTLE, *options)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"optimizer:\n  class_path: torch.optim.Adam\n  init_args: {lr: abc}\n",
         "optimizer.init_args.lr in own.yaml: Expected a <class 'float'>. Got value: abc"),
        (b"trainer:\n  max_epochs: abc\n", "trainer.max_epochs in own.yaml"),
        (b"trainer:\n max_epochs: 1\n   max_steps: 2\n", "own.yaml is not YAML: "),
        (b"# caf\xe9\n", "own.yaml is not text in UTF-8"),
        ("run_name: a".encode("utf-16"), "own.yaml is not text in UTF-8"),
    ],
)  # fmt: skip
def test_a_fault_in_a_file_is_told_with_the_file(content, says, capsys):
    Path("own.yaml").write_bytes(content)
    assert says in one_line(capsys, *LITTLE, "--config", "own.yaml")


def test_a_file_with_a_byte_order_mark_is_read():
    Path("own.yaml").write_text(Path(QUICK).read_text(), encoding="utf-8-sig")
    main(["fit", "--config", "own.yaml", "--trainer.fast_dev_run", "1"])


def test_the_configuration_of_a_run_is_read_back():
    """Lightning issue 19681: that of ``StochasticWeightAveraging`` could not be."""
    swa = ("--trainer.callbacks+", "StochasticWeightAveraging")
    main([*LITTLE, "--run_dir", "mine", *swa, "--trainer.callbacks.swa_lrs", "0.01"])
    config = yaml.safe_load(Path("mine/config.yaml").read_text())
    (kept,) = [c for c in config["trainer"]["callbacks"] if "Stochastic" in c["class_path"]]
    assert kept["init_args"]["swa_lrs"] == 0.01
    main(["fit", "--config", "mine/config.yaml", "--run_dir", "again"])
    assert Path("again/checkpoints/last.ckpt").is_file()


OWN = """
import torch
from lightning.pytorch import Callback


class Announce(Callback):
    def on_fit_end(self, trainer, pl_module):
        print("found in the working directory")
"""


def test_a_class_in_the_working_directory_is_found_by_the_installed_command():
    """``No module named`` was what a subclassing user met first."""
    Path("my_callbacks.py").write_text(OWN)
    program = Path(sys.executable).parent / "mip-lightning"
    args = [program, *LITTLE, "--trainer.callbacks+", "my_callbacks.Announce"]
    done = subprocess.run(args, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "found in the working directory" in done.stdout


def test_the_best_gamma_of_the_validation_data_is_reported_on_the_test_data():
    """Chosen on the test data, the best is too good."""
    main([*LITTLE, "--run_dir", "mine"])
    best = "mine/checkpoints/best.ckpt"
    main(["select-gamma", "--ckpt_path", best])
    selected = "mine/select-gamma/selected_gamma.yaml"
    gamma = yaml.safe_load(Path(selected).read_text())["gamma"]
    main(["test", "--ckpt_path", best, "--gamma", selected])
    (row,) = rows("mine/test/test_gamma_curve.csv")
    assert float(row["gamma"]) == pytest.approx(gamma)
    main(["test", "--ckpt_path", best, "--gamma", "[0.25, 0.5]"])
    assert [float(r["gamma"]) for r in rows("mine/test_1/test_gamma_curve.csv")] == [0.25, 0.5]
    main(["test", "--ckpt_path", best])
    assert len(rows("mine/test_2/test_gamma_curve.csv")) == 3


def test_a_gamma_for_each_validation_subject_is_none_for_the_test_data(capsys):
    main([*LITTLE, "--run_dir", "mine"])
    Path("selected.yaml").write_text("by: subject\ngamma: {a: 0.5}\n")
    with pytest.raises(SystemExit) as exit_info:
        main(["test", "--ckpt_path", "mine/checkpoints/best.ckpt", "--gamma", "selected.yaml"])
    assert "select-gamma --by all" in str(exit_info.value.code)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_every_callback_under_every_precision(precision):
    """A traceback came after training, while a figure was drawn."""
    callbacks = [
        option
        for name in ("GradientStats", "Distributions", "CostCurve", "TrainingStability")
        for option in ("--trainer.callbacks+", name)
    ]
    main([*LITTLE, "--trainer.precision", precision, "--run_dir", "mine", *callbacks])
    main(["test", "--ckpt_path", "mine/checkpoints/best.ckpt"])
    assert Path("mine/test/test_gamma_curve.png").is_file()
