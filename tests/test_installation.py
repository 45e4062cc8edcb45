"""The package as users get it: a wheel, without the checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "mip_lightning"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the wheel is installed, without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "runs", "__pycache__")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=source, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    options = ["--no-deps", "--no-index", "--quiet", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    return target


def test_the_wheel_holds_every_module_and_nothing_else(installed):
    expected = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")}
    expected.add("mip_lightning/py.typed")
    found = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    ours = {n for n in found if ".dist-info/" not in n and "__pycache__" not in n}
    assert ours == expected | {"bin/mip-lightning"}
    assert any(name.endswith("licenses/LICENSE") for name in found)


def test_the_installed_command_runs_without_the_checkout(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    where = "import mip_lightning; print(mip_lightning.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where],
        env=environment, cwd=tmp_path, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert found.stdout.startswith(str(installed))
    shutil.copy(ROOT / "cli.yaml", tmp_path)
    command = ["fit", "--config", "cli.yaml", "--trainer.fast_dev_run", "1"]
    subprocess.run(
        [sys.executable, str(installed / "bin" / "mip-lightning"), *command],
        env=environment, cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip


def test_the_top_level_names_are_links_into_the_package():
    for name in ("tasks", "callbacks"):
        assert (ROOT / name).readlink() == Path("mip_lightning") / name
