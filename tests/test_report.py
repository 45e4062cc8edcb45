import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import yaml
from conftest import ROOT

from mip_lightning import UsageError
from mip_lightning.cli import main
from mip_lightning.report import summarize

FORMULATION = "model.init_args.formulation"


def write_test(folder: Path, formulation: str, accuracies: list[float]) -> Path:
    folder.mkdir(parents=True)
    config = {"model": {"init_args": {"formulation": formulation}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = ["step,gamma,accuracy", *(f"1,0.5,{accuracy}" for accuracy in accuracies)]
    (folder / "test_gamma_curve.csv").write_text("\n".join(lines))
    return folder


def test_replicas_share_a_row_with_their_mean_and_standard_deviation(tmp_path):
    folders = [
        write_test(tmp_path / "a", "mip", [0.9, 0.8]),
        write_test(tmp_path / "b", "default", [0.1, 0.1]),
        write_test(tmp_path / "c", "mip", [1.0, 0.9]),
    ]
    table = summarize(folders, "accuracy", [FORMULATION]).splitlines()
    assert table[2:] == [
        "| mip | 0.900 (0.071) | 0.850, 0.950 |",
        "| default | 0.100 | 0.100 |",
    ]


def test_what_is_missing_is_named(tmp_path):
    folder = write_test(tmp_path / "a", "mip", [0.9])
    with pytest.raises(UsageError, match=r"metric='dice' is not in .*accuracy"):
        summarize([folder], "dice", [FORMULATION])
    with pytest.raises(UsageError, match="has no 'nothing'"):
        summarize([folder], "accuracy", ["model.nothing"])
    (folder / "test_gamma_curve.csv").unlink()
    with pytest.raises(UsageError, match="no finished test"):
        summarize([folder], "accuracy", [FORMULATION])
    with pytest.raises(UsageError, match="holds no test"):
        summarize([tmp_path], "accuracy", [FORMULATION])


def test_the_command_prints_the_table(tmp_path):
    folder = write_test(tmp_path / "a", "mip", [0.5])
    command = [sys.executable, "-m", "mip_lightning.report", str(folder)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "| mip | 0.500 | 0.500 |" in printed


@pytest.fixture(scope="module")
def diagnosed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Runs of two formulations with all callbacks."""
    folder = tmp_path_factory.mktemp("diagnosed")
    config = yaml.safe_load((ROOT / "tests" / "conf" / "quick.yaml").read_text())
    names = ("PredictedWeightStats", "Distributions", "GradientStats")
    config["trainer"]["callbacks"] = [{"class_path": name} for name in names]
    (folder / "diagnosed.yaml").write_text(yaml.safe_dump(config))
    runs = [str(folder / formulation) for formulation in ("default", "mip")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mip-lightning"])
        for run in runs:
            options = ["--run_dir", run, "--model.formulation", Path(run).name]
            main(["fit", "--config", str(folder / "diagnosed.yaml"), *options])
    return runs


FIGURES = "mip_lightning.report.figures"


@pytest.mark.parametrize(
    ("figure", "options"),
    [
        ("scale", []),
        ("distributions", []),
        ("distributions", ["--of", "activations", "--layer", "layers.3", "--step", "6"]),
        ("gradients", []),
        ("convergence", []),
    ],
)
def test_runs_are_drawn_side_by_side(diagnosed, figure, options):
    command = [sys.executable, "-m", FIGURES, figure, *diagnosed, "--out", "figure.png", *options]
    subprocess.run(command, check=True, timeout=100)
    assert matplotlib.image.imread("figure.png").std() > 0.05


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["scale", "nothing", "--out", "a.png"], "is not there: run with the callback Predicted"),
        (["gradients", "RUN", "--out", "there.png"], "out='there.png' is there already"),
        (["distributions", "RUN", "--out", "a.png", "--layer", "x"], "has the layers layers.1"),
        (["convergence", "RUN", "--out", "a.png", "--metric", "dice"], "it has step, epoch, gamma"),
    ],
)
def test_what_cannot_be_drawn_is_named_in_one_line(diagnosed, command, says):
    Path("there.png").write_text("mine")
    command = [diagnosed[0] if word == "RUN" else word for word in command]
    done = subprocess.run(
        [sys.executable, "-m", FIGURES, *command], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert says in line
    assert Path("there.png").read_text() == "mine"


def write_validations(folder: Path, formulation: str, values: dict[int, list[float]]) -> str:
    folder.mkdir(parents=True)
    config = {"model": {"init_args": {"formulation": formulation}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [f"{step},1,0.5,{value}" for step, curve in values.items() for value in curve]
    (folder / "val_gamma_curve.csv").write_text("\n".join(["step,epoch,gamma,dice", *rows]))
    return str(folder)


def test_the_convergence_of_replicas_is_their_mean_and_standard_deviation(tmp_path):
    runs = [
        write_validations(tmp_path / "a", "mip", {10: [0.1, 0.2], 20: [0.5, 0.7]}),
        write_validations(tmp_path / "b", "mip", {10: [0.1, 0.2], 20: [0.7, 0.9]}),
        write_validations(tmp_path / "c", "default", {10: [0.1, 0.2], 20: [0.2, 0.4]}),
    ]
    command = [sys.executable, "-m", FIGURES, "convergence", "--metric", "dice", "--out", "f.png"]
    done = subprocess.run([*command, *runs], capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines() == [
        "f.png",
        "| formulation | replicas | over gamma | at the best gamma |",
        "|---|---|---|---|",
        "| mip | 2 | 0.700 (0.141) | 0.800 (0.141) |",
        "| default | 1 | 0.300 (0.000) | 0.400 (0.000) |",
    ]
    nowhere = subprocess.run([*command, "none"], capture_output=True, text=True, timeout=100)
    assert nowhere.stderr.splitlines() == [
        "mip_lightning.report.figures: error: none is no folder of a run: it lacks config.yaml"
    ]
    other = write_validations(tmp_path / "d", "mip", {10: [0.1], 30: [0.2]})
    done = subprocess.run([*command, *runs, other], capture_output=True, text=True, timeout=100)
    assert "was validated at other steps" in done.stderr
