"""What the documents promise of each command, looked for where it has run."""

import csv
import math
import re
from pathlib import Path
from typing import Any

import nibabel
import onnxruntime
import torch
import yaml
from documented_commands import SUBCOMMANDS, Command, Outcome
from helpers import ROOT

from mip_lightning import networks

FIGURE = 10_000
"""Bytes that a figure has at least."""


def check(command: Command, folder: Path, outcome: Outcome) -> None:
    """Look for what is promised of a command."""
    program, what = (*command.text.split(), "")[:2]
    if program == "mip-lightning":
        if "--print_config" in command.text:
            assert yaml.safe_load(outcome.out)["run_name"] == "digits"
        else:
            run = run_folder(command, folder)
            files_of_the_tree(command, run, what)
            SUBCOMMAND[what](command, run, outcome)
    elif what.startswith("mip_lightning.report.figures") or command.options.get("out"):
        assert (folder / command.options["out"]).stat().st_size > FIGURE
    elif program == "make":
        made(what, folder, outcome)
    elif program == "for":
        repeated(command, folder)
    else:
        study(program, folder, outcome)


def run_folder(command: Command, folder: Path) -> Path:
    """The folder that a command of the command line has just written to."""
    options, what = command.options, command.text.split()[1]
    if "run_dir" in options:
        return folder / options["run_dir"]
    if what == "fit" and "config" in options:
        (run,) = folder.glob("runs/*/*")
        return run
    run = folder / Path(options["ckpt_path"]).parent.parent
    return (
        run if what == "fit" else max(run.glob(f"{what}*"), key=lambda path: path.stat().st_mtime)
    )


def files_of_the_tree(command: Command, run: Path, what: str) -> None:
    """The README lists the files of the run that ``cli.yaml`` makes; those of ``predict`` have the
    name that the command gives."""
    if command.document != "README.md" or "runs/digits/version_0" not in str(run):
        return
    top = next(path for path in (run, *run.parents) if path.name == "version_0")
    tree = (ROOT / "README.md").read_text().split("runs/digits/version_0/\n")[1].split("```")[0]
    wanted = []
    for line in tree.splitlines():
        names, text = re.fullmatch(r"  (\S+(?:, \S+)?)\s\s+(.*)", line).groups()
        wanted += [name.replace("...", "*") for name in names.split(", ")]
        wanted += [str(Path(names).with_suffix(".csv"))] * ("(and .csv)" in text)
    assert len(wanted) > 10
    for name in wanted:
        of = name.split("/")[0]
        if what == (of if of in SUBCOMMANDS.split("|") else "fit") and what != "predict":
            assert list(top.glob(name)), name


def same(found: Any, said: Any) -> bool:
    """Whether a configuration has what an option says."""
    if isinstance(said, dict):
        return all(same(found[name], value) for name, value in said.items())
    if isinstance(found, dict) and "class_path" in found:
        found = found["class_path"].rsplit(".", 1)[-1]
        said = said.rsplit(".", 1)[-1]
    if isinstance(said, str) and said.startswith("~"):
        return found.endswith(said[1:])
    if isinstance(found, float):
        return math.isclose(found, float(said))
    return str(found) == str(said)


def setting(node: dict[str, Any], key: str) -> Any:
    """The value of an option in a configuration."""
    for name in key.split("."):
        if name.endswith("+"):
            return node[name.removesuffix("+")][-1]  # one more in a list
        node = node if name in node else node["init_args"]
        node = node[name]
    return node


def fit(command: Command, run: Path, outcome: Outcome) -> None:
    """A fit leaves what was run, its checkpoints and all that is logged, and shows how it goes."""
    config = yaml.safe_load(sorted(run.glob("config*.yaml"))[-1].read_text())
    for key, value in command.options.items():
        if key.split(".")[0] in ("model", "data", "trainer", "optimizer"):
            assert same(setting(config, key), yaml.safe_load(value)), key
    validates = config["trainer"]["limit_val_batches"] != 0
    for name in ("best", "last") if validates else ("last",):
        checkpoint = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert checkpoint["state_dict"]
    assert checkpoint["epoch"] == config["trainer"]["max_epochs"] - 1
    assert list(run.glob("events*"))
    for path in run.glob("csv*/metrics.csv"):
        assert any(row["train_loss"] for row in rows(path))
    assert list(run.glob("val_gamma_curve.png")) or not validates
    if "callbacks.yaml" in command.text:
        assert "hello" in outcome.out
        assert list(run.glob("training_stability.csv"))
    assert "train_loss:" in outcome.out
    assert "hypernetwork: trunk" in outcome.err + outcome.out


def test(command: Command, run: Path, outcome: Outcome) -> None:
    """A test draws each metric against gamma."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    size = config["model"]["init_args"]["test_grid_size"]
    found = len(rows(run / "test_gamma_curve.csv"))
    assert found == size if config["gamma"] is None else found >= 1
    figures = ["test_gamma_curve.png"]
    task = config["model"]["class_path"].rsplit(".", 1)[-1]
    if "CostCurve" in str(config["trainer"]["callbacks"]):
        figures.append("test_cost_curve.png")
        assert {"flops", "milliseconds", "on_pareto_front"} <= rows(run / "test_cost_curve.csv")[0].keys()  # fmt: skip  # noqa: E501
    if task == "Registration":
        figures.append("test_dice_by_label.png")
        assert {"dice", "folded_share"} <= rows(run / "test_gamma_curve.csv")[0].keys()
        assert "test_dice_before" in outcome.out
    for name in figures:
        assert (run / name).stat().st_size > FIGURE
    assert "test_loss" in outcome.out


def predict(command: Command, run: Path, outcome: Outcome) -> None:
    """Predictions have a row for each sample, or three volumes for each pair and gamma."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    task = config["model"]["class_path"].rsplit(".", 1)[-1]
    if task == "BayesianClassification":
        table = rows(run / command.options.get("predictions.path", "predictions.csv"))
        assert len(table) == 360
        assert any("entropy" in name for name in table[0])
        return
    kinds = ("image", "labels", "displacement") if task == "Registration" else ("labels",)
    gammas = yaml.safe_load(command.options["gamma"])
    folders = [path for path in run.iterdir() if list(path.glob("*.nii.gz"))]
    assert len(folders) >= 2
    for path in folders:
        assert ("_to_" in path.name) == (task == "Registration")
        for kind in kinds:
            files = list(path.glob(f"gamma_*_{kind}.nii.gz"))
            assert len(files) == len(gammas) if isinstance(gammas, list) else files
            assert nibabel.load(files[0]).ndim >= 3
            if isinstance(gammas, list):
                assert {f"gamma_{gamma:g}_{kind}.nii.gz" for gamma in gammas} == {
                    file.name for file in files
                }


def export(command: Command, run: Path, outcome: Outcome) -> None:
    """An exported network loads, without this library unless its class is one of ours."""
    files = [path for path in run.iterdir() if "_gamma_" in path.name]
    assert files
    for file in files:
        network = file.name.split("_gamma_")[0]
        match command.options.get("format", "state_dict"):
            case "state_dict":
                small = {"features": 4, "levels": 3} if "UNet" in network else {"num_classes": 10}
                primary = getattr(networks, network)(**small)
                if network == "ScaleSpaceUNet":
                    primary = networks.ScaleSpaceUNet(1, 5, **small)
                primary.load_state_dict(torch.load(file, weights_only=True))
            case "torch_export":
                assert torch.export.load(file).module()
            case "onnx":
                (taken,) = onnxruntime.InferenceSession(file).get_inputs()
                assert taken.shape[1:] == ([1, 8, 8] if network == "LeNet" else [4])


def select_gamma(command: Command, run: Path, outcome: Outcome) -> None:
    """The file holds the best gamma, for all, by label or by subject."""
    path = run / command.options.get("path", "selected_gamma.yaml")
    content = yaml.safe_load(path.read_text())
    by = command.options.get("by", "all")
    gammas = [content["gamma"]] if by == "all" else list(content["gamma"].values())
    assert len(gammas) == {"all": 1, "label": 4, "subject": 2}[by]
    assert all(0.0 <= gamma <= 1.0 for gamma in gammas)
    assert content["by"] == by
    if "max_flops" in command.options:
        assert content["max_flops"] == float(command.options["max_flops"])


SUBCOMMAND = {
    "fit": fit,
    "test": test,
    "predict": predict,
    "export": export,
    "select-gamma": select_gamma,
}


def made(target: str, folder: Path, outcome: Outcome) -> None:
    """``make train`` says where its figures are."""
    if target == "train":
        figures = re.findall(r"Figures: (\S+) (\S+)", outcome.out)[0]
        assert [(folder / path).stat().st_size > FIGURE for path in figures] == [True, True]


def repeated(command: Command, folder: Path) -> None:
    """A loop has a run for each of its values."""
    values = re.match(r"for \w+ in (.*?); do", command.text)[1].split()
    run = "runs/diagnostics/*" if "fit" in command.text else "runs/oasis/*"
    for value in values:
        assert (folder / run.replace("*", value) / "config.yaml").is_file()


def study(script: str, folder: Path, outcome: Outcome) -> None:
    """A study has twelve runs, and then its tables and figures."""
    runs = [path.parent for path in folder.glob("runs/*/*-[012]/config.yaml")]
    assert len(runs) == 12
    if "hypermorph" not in script:
        assert len(list(folder.glob("runs/*/*/test/test_gamma_curve.csv"))) == 12
        row = r"^\| torch\S+ \| mip \|" if "scale_space" in script else r"^\| mip \|"
        assert len(re.findall(row, outcome.out, re.MULTILINE)) == 2
    if "mnist" not in script:
        assert len([p for p in folder.glob("runs/*/*.png") if p.stat().st_size > FIGURE]) == 2


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
