import csv
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_only

from mip_lightning.cli.main import main
from mip_lightning.networks import MultilayerPerceptron
from mip_lightning.optim import FactoredAdam
from mip_lightning.tasks import BayesianClassification

CONF = ROOT / "tests" / "conf"
QUICK = str(CONF / "quick.yaml")


def run(*args: str) -> None:
    main(args)


def refused(capsys: pytest.CaptureFixture, *args: str) -> str:
    """The one line with which a command is refused."""
    with pytest.raises(SystemExit) as exit_info:
        run(*args)
    code = exit_info.value.code
    message = code if isinstance(code, str) else capsys.readouterr().err
    lines = [line for line in message.splitlines() if line.strip()]
    assert len(lines) == 1, message
    assert lines[0].startswith("mip-lightning: error: ")
    return lines[0]


def read_csv(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def files(folder: str | Path) -> set[str]:
    return {path.name for path in Path(folder).iterdir() if "tfevents" not in path.name}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be copied."""
    folder = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["mip-lightning"])
        main(["fit", "--config", QUICK])
    return folder / "runs" / "quick" / "version_0"


@pytest.fixture
def checkpoint(fitted: Path) -> str:
    shutil.copytree(fitted, "runs/quick/version_0")
    return "runs/quick/version_0/checkpoints/best.ckpt"


def test_a_run_directory_holds_all_of_a_run(fitted):
    assert files(fitted) == {
        "config.yaml",
        "checkpoints",
        "csv",
        "hparams.yaml",
        "predicted_weight_stats.csv",
        "predicted_weight_stats.png",
        "val_gamma_curve.csv",
        "val_gamma_curve.png",
    }
    assert files(fitted / "checkpoints") == {"best.ckpt", "last.ckpt"}
    assert any("tfevents" in path.name for path in fitted.iterdir())
    with (fitted / "csv" / "metrics.csv").open() as file:
        columns = set(csv.DictReader(file).fieldnames)
    assert {"train_loss", "gamma", "val_accuracy", "proportionality/slope"} <= columns


def test_the_best_checkpoint_is_the_best_by_the_tasks_monitor(fitted):
    best = torch.load(fitted / "checkpoints" / "best.ckpt", weights_only=True)
    states = [state for name, state in best["callbacks"].items() if "BestCheckpoint" in name]
    assert [state["monitor"] for state in states] == ["val_accuracy"]
    with (fitted / "csv" / "metrics.csv").open() as file:
        accuracies = [
            float(row["val_accuracy"]) for row in csv.DictReader(file) if row["val_accuracy"]
        ]
    assert states[0]["best_model_score"].item() == pytest.approx(max(accuracies))


def test_a_second_run_takes_the_next_folder(checkpoint):
    run("fit", "--config", QUICK, "--trainer.max_epochs", "1")
    assert files("runs/quick") == {"version_0", "version_1"}


def test_a_checkpoint_is_tested_with_the_configuration_of_its_run(checkpoint, capsys):
    run("test", "--ckpt_path", checkpoint)
    assert "test_accuracy_ensemble" in capsys.readouterr().out
    tested = Path("runs/quick/version_0/test")
    assert {"test_gamma_curve.csv", "test_gamma_curve.png", "config.yaml"} <= files(tested)
    run("test", "--ckpt_path", checkpoint)
    assert "test_gamma_curve.csv" in files("runs/quick/version_0/test_1")


def test_a_run_in_a_folder_that_the_user_names_is_tested_inside_it():
    run("fit", "--config", QUICK, "--run_dir", "mine")
    run("test", "--ckpt_path", "mine/checkpoints/best.ckpt")
    assert "test_gamma_curve.csv" in files("mine/test")
    run("test", "--ckpt_path", "mine/checkpoints/best.ckpt", "--run_dir", "elsewhere")
    assert "test_gamma_curve.csv" in files("elsewhere")


def test_validate_reports_and_predict_writes(checkpoint, capsys):
    run("validate", "--ckpt_path", checkpoint)
    assert "val_accuracy" in capsys.readouterr().out
    run("predict", "--ckpt_path", checkpoint, "--predictions.path", "p.pt")
    written = torch.load("runs/quick/version_0/predict/p.pt", weights_only=True)
    assert written["probabilities"].shape == (360, 10)


def test_what_the_user_says_of_the_model_wins_over_the_checkpoint(checkpoint):
    run("predict", "--ckpt_path", checkpoint, "--predictions.path", "two.pt")
    run(
        "predict", "--ckpt_path", checkpoint, "--predictions.path", "many.pt",
        "--model.ensemble_size", "30",
    )  # fmt: skip
    two, many = (
        torch.load(f"runs/quick/version_0/{f}", weights_only=True)["probabilities"]
        for f in ("predict/two.pt", "predict_1/many.pt")
    )
    assert not torch.equal(two, many)


def test_the_checkpoint_of_another_primary_is_refused_by_the_names_of_its_tensors(
    checkpoint, capsys
):
    line = refused(
        capsys, "test", "--ckpt_path", checkpoint, "--model.primary.hidden_sizes", "[17]"
    )
    assert "model.primary.layers.1.weight is (16, 64) there, (17, 64) here" in line
    line = refused(capsys, "test", "--ckpt_path", checkpoint, "--model.prior.high", "5")
    assert "prior is Uniform(low=0.0, high=1.0, dim=1)" in line
    assert "high=5.0" in line
    line = refused(
        capsys, "test", "--ckpt_path", checkpoint, "--model.hypernetwork.activation", "Tanh"
    )
    assert "LeakyReLU" in line


def test_a_checkpoint_loads_without_the_command_line(fitted):
    path = fitted / "checkpoints" / "best.ckpt"
    torch.load(path, weights_only=True)
    task = BayesianClassification.load_from_checkpoint(path)
    assert task.model.primary.layers[1].out_features == 16
    assert len(task.ensemble_gamma) == 2


def test_a_run_is_resumed_in_its_own_folder():
    run("fit", "--config", QUICK)
    last = "runs/quick/version_0/checkpoints/last.ckpt"
    run("fit", "--config", QUICK, "--ckpt_path", last, "--trainer.max_epochs", "3")
    assert files("runs/quick") == {"version_0"}
    names = files("runs/quick/version_0")
    assert {"config.yaml", "config_1.yaml", "csv", "csv_1"} <= names
    assert "predicted_weight_stats_1.csv" not in names
    assert torch.load(last, weights_only=True)["epoch"] == 2


def test_the_last_checkpoint_is_of_the_last_epoch_wherever_the_best_was():
    run("fit", "--config", QUICK, "--optimizer.lr", "0.0")
    folder = "runs/quick/version_0/checkpoints"
    best, last = (torch.load(f"{folder}/{n}.ckpt", weights_only=True) for n in ("best", "last"))
    assert (best["epoch"], last["epoch"]) == (0, 1)


def test_a_run_without_validation_has_a_last_checkpoint_and_warns_of_no_best():
    run("fit", "--config", QUICK, "--run_dir", "all", "--trainer.limit_val_batches", "0")
    assert files("all/checkpoints") == {"last.ckpt"}


def test_a_resumption_that_is_refused_leaves_the_run_as_it_was(checkpoint, capsys):
    before = files("runs/quick/version_0")
    last = checkpoint.replace("best", "last")
    line = refused(capsys, "fit", "--ckpt_path", last, "--model.formulation", "default")
    assert "another model" in line
    assert files("runs/quick/version_0") - {"csv_1"} == before  # Lightning opens loggers first
    run("test", "--ckpt_path", checkpoint)


def test_a_resumed_run_ends_with_the_weights_of_the_undisturbed_one():
    longer = ["--trainer.max_epochs", "4"]
    run("fit", "--config", QUICK, "--run_dir", "whole", *longer)
    run("fit", "--config", QUICK, "--run_dir", "parts")
    run("fit", "--ckpt_path", "parts/checkpoints/last.ckpt", *longer)
    whole, parts = (
        torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "parts")
    )
    for name, value in whole.items():
        assert torch.equal(value, parts[name])


def test_the_best_checkpoint_of_a_resumed_run_is_the_best_of_the_whole_run():
    still = ["--optimizer.lr", "0.0"]  # all epochs are alike, and the first was there before
    run("fit", "--config", QUICK, "--run_dir", "run", *still)
    best = torch.load("run/checkpoints/best.ckpt", weights_only=True)
    options = [*still, "--trainer.max_epochs", "4"]
    run("fit", "--config", QUICK, "--ckpt_path", "run/checkpoints/last.ckpt", *options)
    epochs = [row["epoch"] for row in read_csv("run/val_gamma_curve.csv")]
    assert sorted(set(epochs)) == ["1", "2", "3", "4"]
    again = torch.load("run/checkpoints/best.ckpt", weights_only=True)
    assert again["epoch"] == best["epoch"] == 0
    assert all(torch.equal(v, best["state_dict"][n]) for n, v in again["state_dict"].items())


def test_a_checkpoint_starts_another_run_where_a_folder_is_named(checkpoint):
    before = files("runs/quick/version_0")
    options = ["--ckpt_path", checkpoint, "--run_dir", "other", "--trainer.max_epochs", "3"]
    run("fit", "--config", QUICK, *options)
    assert {"config.yaml", "checkpoints"} <= files("other")
    assert files("runs/quick/version_0") == before


def test_a_checkpoint_alone_goes_on_with_its_run():
    run("fit", "--config", QUICK)
    run(
        "fit",
        "--ckpt_path",
        "runs/quick/version_0/checkpoints/last.ckpt",
        "--trainer.max_epochs",
        "3",
    )
    assert files("runs/quick") == {"version_0"}
    assert torch.load("runs/quick/version_0/checkpoints/last.ckpt", weights_only=True)["epoch"] == 2
    run("test", "--ckpt_path", "runs/quick/version_0/checkpoints/last.ckpt")
    tested = yaml.safe_load(Path("runs/quick/version_0/test/config.yaml").read_text())
    assert tested["trainer"]["max_epochs"] == 3  # the configuration that was last run


def test_commands_run_where_slurm_is_installed(monkeypatch):
    Path("bin").mkdir()
    Path("bin/srun").write_text("#!/bin/sh\n")
    Path("bin/srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(Path("bin").resolve()), prepend=os.pathsep)
    run("fit", "--config", QUICK, "--trainer.max_epochs", "1")
    assert files("runs/quick") == {"version_0"}


def test_two_runs_of_one_process_have_a_folder_each():
    for name in ("one", "two"):
        run("fit", "--config", QUICK, "--run_dir", name, "--trainer.max_epochs", "1")
    assert {"config.yaml", "checkpoints"} <= files("one") & files("two")


def test_classes_of_a_users_own_package_are_named_by_their_import_path(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(CONF.parent))
    run("fit", "--config", str(CONF / "own_task.yaml"), "--trainer.enable_progress_bar", "false")
    assert "hello" in capsys.readouterr().out
    assert files("runs/own/version_0/checkpoints") == {"best.ckpt", "last.ckpt"}


def test_a_network_of_torchvision_is_named_by_its_import_path(monkeypatch, caplog):
    monkeypatch.syspath_prepend(str(CONF.parent))
    config = yaml.safe_load(Path(QUICK).read_text())
    config["data"] = {"class_path": "own_package.Pictures"}
    config["model"]["init_args"]["primary"] = {
        "class_path": "torchvision.models.resnet18",
        "init_args": {"num_classes": 10},
    }
    Path("resnet.yaml").write_text(yaml.safe_dump(config))
    options = ["--trainer.fast_dev_run", "1", "--trainer.enable_model_summary", "true"]
    run("fit", "--config", "resnet.yaml", *options)
    assert "fc.weight" in caplog.text


@pytest.mark.parametrize("logger", ["false", "CSVLogger"])
def test_any_logger_or_none_will_do(logger):
    extra = [] if logger == "false" else ["--trainer.logger.save_dir", "logs"]
    run("fit", "--config", QUICK, "--trainer.logger", logger, *extra, "--run_dir", "here")
    assert {"config.yaml", "checkpoints"} <= files("here")
    folder = Path("here") if logger == "false" else Path("logs/lightning_logs/version_0")
    assert "predicted_weight_stats.png" in files(folder)


def test_a_trial_run_leaves_nothing_behind(fitted):
    run("fit", "--config", QUICK, "--trainer.fast_dev_run", "1")
    for kind in ("test", "predict"):
        best = str(fitted / "checkpoints" / "best.ckpt")
        run(kind, "--ckpt_path", best, "--trainer.fast_dev_run", "1")
    assert list(Path().iterdir()) == []


def test_a_users_own_checkpoint_callback_leaves_the_last_checkpoint_and_the_best():
    run(
        "fit", "--config", QUICK, "--run_dir", "mine",
        "--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.filename", "own",
        "--trainer.callbacks.dirpath", "kept",
    )  # fmt: skip
    assert files("kept") == {"own.ckpt"}
    assert files("mine/checkpoints") == {"best.ckpt", "last.ckpt"}


def test_a_users_own_choice_of_the_best_takes_the_place_of_the_default():
    run(
        "fit", "--config", QUICK, "--run_dir", "mine",
        "--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.filename", "own",
        "--trainer.callbacks.monitor", "val_loss",
    )  # fmt: skip
    assert files("mine/checkpoints") == {"own.ckpt", "last.ckpt"}


def test_the_optimizer_that_is_named_is_factored_and_has_the_options_of_each_group(capsys):
    seen = []

    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(trainer.optimizers[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mip_lightning.cli.main.StopOnSignal", lambda path: Look())
        run("fit", "--config", QUICK, "--model.group_options", "{theta0: {lr: 0.5}}")
    (optimizer,) = seen
    assert isinstance(optimizer, FactoredAdam)
    assert {group["lr"] for group in optimizer.param_groups} == {0.01, 0.5}


def test_the_progress_bar_shows_loss_accuracy_and_gamma(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    run("fit", "--config", QUICK, "--trainer.enable_progress_bar", "true")
    shown = capsys.readouterr().out
    for name in ("train_loss:", "train_accuracy:", "val_accuracy:", "gamma:"):
        assert name in shown
    assert "v_num" not in shown


def test_the_configuration_that_is_printed_runs(capsys):
    with pytest.raises(SystemExit) as exit_info:
        run("fit", "--config", str(ROOT / "cli.yaml"), "--print_config")
    assert exit_info.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["class_path"].endswith("BayesianClassification")
    assert printed["model"]["init_args"]["validation_grid_size"] == 5
    Path("printed.yaml").write_text(yaml.safe_dump(printed))
    run("fit", "--config", "printed.yaml", "--trainer.fast_dev_run", "1")


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit):
        run("--version")
    assert "0.1.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--model.prior.low", "3"], "low=3.0, high=1.0: Uniform needs finite bounds"),
        (["--model.primary", "LeNetz"], "there is no class 'LeNetz' (did you mean LeNet?)"),
        (["--model.hypernetwork.encoding", "L2Encodin"], "(did you mean L2Encoding?)"),
        (["--model.hypernetwork.activation", "Nope"], "activation='Nope' is not an activation"),
        (["--model.formulation", "nope"], "'default', 'input', 'output', 'mip'"),
        (["--model.primary", "torch.nn.ReLU"], "primary=ReLU has no parameters to predict"),
        (["--model.draws_per_batch", "7"], "7 draws, which do not divide"),
        (["--model.nonsense", "1"], "there is no option --model.nonsense"),
        (["--data", "MNIST"], "data_dir"),
        (["--data", "MNIST", "--data.data_dir", str(CONF)], "no MNIST/raw"),
        (["--ckpt_path", "nowhere.ckpt"], "ckpt_path='nowhere.ckpt': there is no such file"),
        (["--checkpoint.save_top_k", "3"], "checkpoint.save_top_k=3"),
        (["--checkpoint.save_top_k=-1"], "checkpoint.save_top_k=-1"),
        (["--model.hypernetwork.activation", "Threshold"], "needs arguments"),
    ],
)
def test_bad_input_to_fit_gets_one_line(args, says, capsys):
    options = ["--trainer.num_sanity_val_steps", "0"]
    assert says in refused(capsys, "fit", "--config", QUICK, *options, *args)


@pytest.mark.parametrize("content", ["empty", "text", "cut", "tensor", "weights"])
def test_a_file_that_is_no_checkpoint_gets_one_line(content, fitted, capsys):
    path = Path("file.ckpt")
    whole = (fitted / "checkpoints" / "best.ckpt").read_bytes()
    if content in ("empty", "text", "cut"):
        path.write_bytes({"empty": b"", "text": b"a: 1", "cut": whole[: len(whole) // 2]}[content])
    else:
        torch.save({"tensor": torch.rand(2), "weights": {"w": torch.rand(2)}}[content], path)
    line = refused(capsys, "test", "--config", QUICK, "--ckpt_path", str(path))
    assert "ckpt_path='file.ckpt' is not a" in line or "is damaged" in line


@pytest.mark.parametrize("command", ["fit", "test", "validate", "predict", "export"])
@pytest.mark.parametrize("option", [["--ckpt_path", "nope.ckpt"], ["--ckpt_path=nope.ckpt"]])
def test_a_checkpoint_that_is_not_there_is_named_with_what_is_near(command, option, checkpoint):
    with pytest.raises(SystemExit) as exit_info:
        run(command, *option)
    line = exit_info.value.code
    assert "ckpt_path='nope.ckpt': there is no such file; near it are runs/quick/version_0" in line
    assert "best.ckpt" in line
    assert "last.ckpt" in line


def test_the_folder_of_a_run_in_place_of_its_checkpoint_is_told_what_it_holds(checkpoint, capsys):
    line = refused(capsys, "test", "--ckpt_path", "runs/quick/version_0")
    assert "there is no such file; near it are runs/quick/version_0/checkpoints/" in line


def test_a_changed_byte_of_a_checkpoint_is_refused(checkpoint, capsys):
    content = bytearray(Path(checkpoint).read_bytes())
    content[len(content) // 2] ^= 1
    Path(checkpoint).write_bytes(content)
    for command in (["test"], ["fit"], ["export", "--gamma", "0.3"], ["select-gamma"]):
        line = refused(capsys, *command, "--ckpt_path", checkpoint)
        assert f"ckpt_path={checkpoint!r} is damaged" in line


def test_a_checkpoint_that_was_moved_asks_for_a_configuration(fitted, capsys):
    shutil.copy(fitted / "checkpoints" / "best.ckpt", "moved.ckpt")
    assert "--config" in refused(capsys, "test", "--ckpt_path", "moved.ckpt")


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_random_weights_are_not_evaluated(command, capsys):
    assert "give --ckpt_path" in refused(capsys, command, "--config", QUICK)


def test_a_folder_that_holds_a_run_is_not_taken_again(checkpoint, capsys):
    line = refused(capsys, "fit", "--config", QUICK, "--run_dir", "runs/quick/version_0")
    assert "holds a run already" in line
    assert "runs/quick/version_0/checkpoints/last.ckpt" in line


def test_predictions_of_an_unknown_kind_are_refused_before_they_are_made(checkpoint, capsys):
    line = refused(capsys, "predict", "--ckpt_path", checkpoint, "--predictions.path", "p.xls")
    assert "path='p.xls'" in line


def test_a_file_of_predictions_that_is_there_is_not_overwritten(checkpoint, capsys):
    Path("mine.csv").write_text("mine")
    path = str(Path("mine.csv").resolve())
    line = refused(capsys, "predict", "--ckpt_path", checkpoint, "--predictions.path", path)
    assert "is there already" in line
    assert Path("mine.csv").read_text() == "mine"


def test_a_validation_by_itself_draws_its_curves(checkpoint):
    run("validate", "--ckpt_path", checkpoint)
    assert "val_gamma_curve.png" in files("runs/quick/version_0/validate")


@pytest.mark.parametrize(
    "command", [["select-gamma"], ["export", "--gamma", "0.3"]], ids=["select-gamma", "export"]
)
def test_of_several_processes_one_runs_a_command_that_has_no_ranks(
    command, checkpoint, monkeypatch
):
    before = files("runs/quick/version_0")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with pytest.raises(SystemExit) as exit_info:
        run(*command, "--ckpt_path", checkpoint)
    assert exit_info.value.code is None  # success
    assert files(".") == {"runs"}
    assert files("runs/quick/version_0") == before


def test_several_named_hyperparameters_and_a_choice_of_tensors_are_given_in_yaml():
    config = yaml.safe_load(Path(QUICK).read_text())
    options = config["model"]["init_args"]
    options["prior"] = {
        "class_path": "Joint",
        "init_args": {
            "priors": {
                "weight": {"class_path": "LogUniform", "init_args": {"low": 0.1}},
                "kind": {"class_path": "Categorical", "init_args": {"categories": ["a", "b"]}},
            }
        },
    }
    options["theta"] = {"predicted": ["layers.1.*"], "weight_decay": 1e-3}
    options["hypernetwork"] |= {
        "head": {"class_path": "LowRankHead", "init_args": {"rank": 1}},
        "encoding": "ComplementEncoding",
        "head_init": "calibrated",
    }
    options["group_options"] = {"theta0": {"lr": 1e-5}}
    Path("joint.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    run("fit", "--config", "joint.yaml", "--run_dir", "run")
    metrics = read_csv("run/csv/metrics.csv")
    assert {"gamma/weight", "gamma/kind"} <= metrics[0].keys()
    stats = read_csv("run/predicted_weight_stats.csv")
    assert list(stats[0]) == [
        "step",
        "epoch",
        "line",
        "tensor",
        "weight",
        "kind",
        "std",
        "mean",
        "norm",
    ]
    assert {row["tensor"] for row in stats} == {"all", "layers.1.weight", "layers.1.bias"}
    checkpoint = "run/checkpoints/best.ckpt"
    run("test", "--ckpt_path", checkpoint)
    assert list(read_csv("run/test/test_gamma_curve.csv")[0])[:2] == ["weight", "kind"]
    run("export", "--ckpt_path", checkpoint, "--gamma", "{weight: 0.5, kind: b}")
    assert Path("run/export/MultilayerPerceptron.pt").is_file()


def test_a_checkpoint_needs_its_pretrained_file_no_more():
    trained = MultilayerPerceptron(64, hidden_sizes=[16])
    torch.save(trained.state_dict(), "trained.pt")
    run("fit", "--config", QUICK, "--run_dir", "run", "--model.theta.pretrained", "trained.pt")
    Path("trained.pt").unlink()
    run("test", "--ckpt_path", "run/checkpoints/last.ckpt")
    with pytest.raises(SystemExit, match=r"pretrained='trained.pt': there is no such file"):
        run("fit", "--config", QUICK, "--model.theta.pretrained", "trained.pt")
