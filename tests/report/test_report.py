import contextlib
import copy
import csv
import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import yaml
from helpers import ROOT
from matplotlib.figure import Figure

from mip_lightning import UsageError
from mip_lightning.cli.main import main
from mip_lightning.report import summarize
from mip_lightning.report.figures import convergence, gradients, scale

FORMULATION = "model.init_args.formulation"


CONFIG = {
    "seed_everything": 0,
    "trainer": {"max_epochs": 2, "devices": 1, "logger": None, "enable_progress_bar": True},
    "model": {
        "class_path": "mip_lightning.tasks.BayesianClassification",
        "init_args": {
            "primary": {"class_path": "LeNet", "init_args": {"hidden_sizes": [16]}},
            "formulation": "mip",
            "hypernetwork": {"hidden_sizes": [16, 128]},
        },
    },
    "run_name": "a",
    "run_dir": None,
    "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01, "eps": 1e-8}},
    "lr_scheduler": None,
    "ckpt_path": None,
}
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.003, "momentum": 0.9}}


def configured(changes: dict[str, Any]) -> dict[str, Any]:
    """CONFIG with other values at dotted keys."""
    config = copy.deepcopy(CONFIG)
    for key, value in changes.items():
        *parents, last = key.split(".")
        node: Any = config
        for parent in parents:
            node = node[parent]
        node[last] = value
    return config


def write_config(path: Path, changes: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(configured(changes), sort_keys=False))


def write_test(folder: Path, formulation: str, accuracies: list[float], **changes: Any) -> Path:
    write_config(folder / "config.yaml", {FORMULATION: formulation, **changes})
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
    with pytest.raises(UsageError, match="not the folder of a finished test"):
        summarize([folder], "accuracy", [FORMULATION])
    with pytest.raises(UsageError, match="is not the folder of a test: it has no"):
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


def write_validations(
    folder: Path, values: dict[int, list[float]], changes: dict[str, Any] | None = None
) -> str:
    """A run that measured these values at two gammas, as loss, Dice and a volume."""
    write_config(folder / "config.yaml", changes or {})
    lines = ["step,epoch,gamma,loss,dice,volume,loss_is_best,dice_is_best"]
    for step, curve in values.items():
        for gamma, (value, other) in enumerate((curve, curve[::-1])):
            marks = f"{int(value < other)},{int(value > other)}"
            lines.append(f"{step},1,{gamma},{value},{value},{value},{marks}")
    (folder / "val_gamma_curve.csv").write_text("\n".join(lines))
    return str(folder)


def converge(metric: str, *runs: str) -> list[str]:
    """The rows of the table, once the figure was drawn."""
    Path("f.png").unlink(missing_ok=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        convergence([Path(run) for run in runs], Path("f.png"), metric)
    assert matplotlib.image.imread("f.png").std() > 0.05
    return printed.getvalue().splitlines()[3:]


def test_the_convergence_of_replicas_is_their_mean_and_standard_deviation(tmp_path):
    runs = [
        write_validations(tmp_path / "a", {10: [0.1, 0.2], 20: [0.5, 0.7]}),
        write_validations(tmp_path / "c", {10: [0.1, 0.2], 20: [0.2, 0.4]}, {FORMULATION: "input"}),
        write_validations(tmp_path / "b", {10: [0.1, 0.2], 20: [0.7, 0.9]}, {"seed_everything": 1}),
    ]
    command = [sys.executable, "-m", FIGURES, "convergence", "--metric", "dice", "--out", "f.png"]
    done = subprocess.run([*command, *runs], capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines() == [
        "f.png",
        "| formulation | replicas | over gamma | at the best gamma |",
        "|---|---|---|---|",
        "| mip | 2 | 0.700 (0.141) | 0.800 (0.141) |",
        "| input | 1 | 0.300 (0.000) | 0.400 (0.000) |",
    ]
    nowhere = subprocess.run([*command, "none"], capture_output=True, text=True, timeout=100)
    assert nowhere.stderr.splitlines() == [
        "mip_lightning.report.figures: error:"
        " none is not the folder of a run: it has no config.yaml"
    ]
    other = write_validations(tmp_path / "d", {10: [0.1, 0.2], 30: [0.2, 0.1]})
    with pytest.raises(UsageError, match="was validated at other steps"):
        converge("dice", *runs, other)


def test_runs_of_two_optimizers_are_two_curves(tmp_path):
    runs = [
        write_validations(tmp_path / "0", {10: [0.9, 0.1]}),
        write_validations(tmp_path / "1", {10: [0.7, 0.1]}, {"seed_everything": 1}),
        write_validations(tmp_path / "2", {10: [0.2, 0.1]}, {"optimizer": SGD}),
        write_validations(
            tmp_path / "3", {10: [0.4, 0.1]}, {"optimizer": SGD, "seed_everything": 1}
        ),
    ]
    assert converge("dice", *runs) == [
        "| mip, optimizer Adam, lr 0.01 | 2 | 0.450 (0.071) | 0.800 (0.141) |",
        "| mip, optimizer SGD, lr 0.003 | 2 | 0.200 (0.071) | 0.300 (0.141) |",
    ]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"run_name": "b", "run_dir": "x", "seed_everything": 3}, ["mip"]),
        ({"trainer.logger": {"class_path": "CSVLogger"}}, ["mip"]),
        ({"trainer.enable_progress_bar": False}, ["mip"]),
        ({"trainer.devices": 2}, ["mip, devices 1", "mip, devices 2"]),
        ({"optimizer.init_args.lr": 0.1}, ["mip, lr 0.01", "mip, lr 0.1"]),
        (
            {"lr_scheduler": {"class_path": "torch.optim.lr_scheduler.StepLR"}},
            ["mip, lr_scheduler null", "mip, lr_scheduler StepLR"],
        ),
        (
            {
                "model.init_args.primary.init_args.hidden_sizes": [32],
                "model.init_args.hypernetwork.hidden_sizes": [4],
            },
            [
                "mip, primary.hidden_sizes [16], hypernetwork.hidden_sizes [16, 128]",
                "mip, primary.hidden_sizes [32], hypernetwork.hidden_sizes [4]",
            ],
        ),
        ({"ckpt_path": "c/last.ckpt"}, ["mip, ckpt_path null", "mip, ckpt_path last.ckpt"]),
        ({"data_dir": "x" * 20 + "y" * 20}, ["mip", f"mip, data_dir {'x' * 14}…{'y' * 14}"]),
        ({FORMULATION: None}, ["mip", "BayesianClassification"]),
    ],
)
def test_runs_that_differ_in_more_than_seed_and_names_are_called_by_it(tmp_path, changes, names):
    runs = [
        write_validations(tmp_path / "a", {10: [0.1, 0.2]}),
        write_validations(tmp_path / "b", {10: [0.1, 0.2]}, changes),
    ]
    rows = converge("dice", *runs)
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == names


def test_runs_that_look_alike_are_called_by_their_folders(tmp_path):
    files = [f"{'x' * 20}{middle}{'y' * 20}" for middle in "ab"]
    runs = [
        write_validations(tmp_path / name[20], {10: [0.1, 0.2]}, {"data_dir": name})
        for name in files
    ]
    rows = converge("dice", *runs)
    assert [row.split(" | ")[0].rpartition(", ")[2] for row in rows] == runs


def test_a_run_that_was_resumed_with_other_values_is_no_replica_of_one_that_was_not(tmp_path):
    same, other = {"ckpt_path": "a/last.ckpt"}, {"trainer.max_epochs": 9}
    runs = [
        write_validations(tmp_path / "a", {10: [0.1, 0.2]}),
        write_validations(tmp_path / "b", {10: [0.1, 0.2]}),
        write_validations(tmp_path / "c", {10: [0.1, 0.2]}),
    ]
    write_config(tmp_path / "b" / "config_1.yaml", same)
    write_config(tmp_path / "c" / "config_1.yaml", {**same, **other})
    assert [row.split(" | ")[:2] for row in converge("dice", *runs)] == [
        ["| mip", "2"],
        ["| mip, resumed with {trainer.max_epochs: 9}", "1"],
    ]


def test_the_best_of_a_loss_is_the_lowest(tmp_path):
    run = write_validations(tmp_path / "a", {10: [0.9, 0.8], 20: [0.5, 0.7]})
    assert converge("loss", run) == ["| mip | 1 | 0.600 (0.000) | 0.500 (0.000) |"]
    assert converge("dice", run) == ["| mip | 1 | 0.600 (0.000) | 0.700 (0.000) |"]


def test_where_nothing_is_best_the_table_says_so(tmp_path):
    run = write_validations(tmp_path / "a", {10: [0.5, 0.7]})
    assert converge("volume", run) == ["| mip | 1 | 0.600 (0.000) | no better end |"]
    nan = write_validations(tmp_path / "b", {10: [0.9, 0.8], 20: [float("nan")] * 2})
    assert converge("loss", nan) == ["| mip | 1 | nan (nan) | nan (nan) |"]
    curve = tmp_path / "a" / "val_gamma_curve.csv"
    curve.write_text("step,epoch,gamma,loss\n10,1,0.0,0.5\n10,1,1.0,0.7")  # of before the marks
    assert converge("loss", run) == ["| mip | 1 | 0.600 (0.000) | not recorded |"]
    lines = ["step,epoch,gamma,loss,loss_is_best", "5,1,0.0,1,", "10,1,0.0,0.5,1"]  # resumed since
    curve.write_text("\n".join(lines))
    assert converge("loss", run) == ["| mip | 1 | 0.500 (0.000) | not recorded |"]


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.yaml", "model: [", "config.yaml is not YAML"),
        ("config.yaml", "a: 1", "is not the configuration of a run: it has no model"),
        ("val_gamma_curve.csv", "step,epoch,gamma,loss\n", "val_gamma_curve.csv has no rows yet"),
        ("val_gamma_curve.csv", "gamma,loss\n0.1,1", "holds no training: give the folder that"),
    ],
)
def test_a_folder_that_cannot_be_read_is_named(tmp_path, file, content, says):
    run = write_validations(tmp_path / "a", {10: [0.5, 0.7]})
    (tmp_path / "a" / file).write_text(content)
    with pytest.raises(UsageError, match=says):
        converge("loss", run)


def test_a_run_that_is_given_twice_is_refused(tmp_path):
    run = write_validations(tmp_path / "a", {10: [0.5, 0.7]})
    with pytest.raises(UsageError, match="a is given twice: name each run once"):
        converge("dice", run, f"{tmp_path}/x/../a/")
    test = write_test(tmp_path / "t", "mip", [0.5])
    with pytest.raises(UsageError, match="t is given twice: name each test once"):
        summarize([test, test], "accuracy", [FORMULATION])


@pytest.fixture
def replicated(diagnosed: list[str], tmp_path: Path) -> list[str]:
    """The two runs, the second with another seed, and with another optimizer."""
    runs = list(diagnosed)
    for name, old, new in (
        ("seed", "seed_everything: 0", "seed_everything: 7"),
        ("sgd", "class_path: torch.optim.Adam", "class_path: torch.optim.SGD"),
    ):
        folder = Path(shutil.copytree(diagnosed[1], tmp_path / name))
        text = (folder / "config.yaml").read_text()
        assert text.count(old) == 1
        (folder / "config.yaml").write_text(text.replace(old, new))
        runs.append(str(folder))
    return runs


@pytest.mark.parametrize(("metric", "best"), [("loss", min), ("accuracy", max)])
def test_what_a_fit_marks_as_best_is_what_the_table_shows(replicated, metric, best):
    with Path(replicated[1], "val_gamma_curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    values = [float(row[metric]) for row in rows if row["step"] == rows[-1]["step"]]
    numbers = f"{sum(values) / len(values):.3f} (0.000) | {best(values):.3f} (0.000) |"
    assert len(set(values)) == 2
    assert converge(metric, *replicated)[1:] == [
        f"| mip, optimizer Adam | 2 | {numbers}",
        f"| mip, optimizer SGD | 1 | {numbers}",
    ]


def test_panels_and_curves_of_one_formulation_are_told_apart(replicated, monkeypatch):
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    expected = [
        "default, seed 0, optimizer Adam",
        "mip, seed 0, optimizer Adam",
        "mip, seed 7, optimizer Adam",
        "mip, seed 0, optimizer SGD",
    ]
    scale([Path(run) for run in replicated], Path("s.png"))
    assert [axes.get_title() for axes in drawn[0].axes] == expected
    gradients([Path(run) for run in replicated], Path("g.png"))
    assert [text.get_text() for text in drawn[1].axes[0].get_legend().get_texts()] == expected


def test_tests_in_a_row_that_differ_in_more_than_the_seed_are_refused(tmp_path):
    folders = [
        write_test(tmp_path / "a", "mip", [0.9]),
        write_test(tmp_path / "b", "mip", [0.5], seed_everything=1),
        write_test(tmp_path / "c", "mip", [0.1], optimizer=SGD),
    ]
    with pytest.raises(UsageError) as error:
        summarize(folders, "accuracy", [FORMULATION])
    assert str(error.value) == (
        f"by=['{FORMULATION}']: {folders[0]} and {folders[2]} are not replicas, for they differ in"
        " optimizer.class_path (Adam and SGD), optimizer.init_args.lr (0.01 and 0.003):"
        f" add --by {FORMULATION} optimizer.class_path, or make a table of each"
    )
    table = summarize(folders, "accuracy", [FORMULATION, "optimizer.class_path"])
    assert table.splitlines()[2:] == [
        "| mip | torch.optim.Adam | 0.700 (0.283) | 0.900, 0.500 |",
        "| mip | torch.optim.SGD | 0.100 | 0.100 |",
    ]


def test_tests_of_one_run_are_not_replicas(tmp_path):
    best = write_test(tmp_path / "test", "mip", [0.9], ckpt_path="run/checkpoints/best.ckpt")
    last = write_test(tmp_path / "test_1", "mip", [0.8], ckpt_path="run/checkpoints/last.ckpt")
    again = write_test(tmp_path / "test_2", "mip", [0.8], ckpt_path="run/checkpoints/last.ckpt")
    says = r"differ in ckpt_path \(best.ckpt and last.ckpt\): make a table of each$"
    with pytest.raises(UsageError, match=says):
        summarize([best, last], "accuracy", [FORMULATION])
    with pytest.raises(UsageError, match=r"are tests of one checkpoint, run/checkpoints/last.ckpt"):
        summarize([last, again], "accuracy", [FORMULATION])
    other = write_test(tmp_path / "b", "mip", [0.6], ckpt_path="b/checkpoints/last.ckpt")
    assert "| mip | 0.700 (0.141) |" in summarize([last, other], "accuracy", [FORMULATION])
