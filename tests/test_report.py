import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mip_lightning import UsageError
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
