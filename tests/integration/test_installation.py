"""The package as users get it: a wheel, without the checkout."""

import os
import subprocess
import sys
from pathlib import Path

from helpers import ROOT

PACKAGE = ROOT / "mip_lightning"


def test_the_wheel_holds_every_module_and_nothing_else(installed):
    expected = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")}
    expected.add("mip_lightning/py.typed")
    found = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    ours = {n for n in found if ".dist-info/" not in n and "__pycache__" not in n}
    assert ours == expected | {"bin/mip-lightning"}
    assert any(name.endswith("licenses/LICENSE") for name in found)


def test_the_installed_package_is_found_without_the_checkout(installed, tmp_path):
    """What its command does is in test_documented_commands.py."""
    found = subprocess.run(
        [sys.executable, "-c", "import mip_lightning; print(mip_lightning.__file__)"],
        env={**os.environ, "PYTHONPATH": str(installed)},
        cwd=tmp_path, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert found.stdout.startswith(str(installed))


def test_the_top_level_names_are_links_into_the_package():
    for name in ("tasks", "callbacks"):
        assert (ROOT / name).readlink() == Path("mip_lightning") / name
