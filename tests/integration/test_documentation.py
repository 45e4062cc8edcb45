"""What the documents say is so."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT

README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def test_the_python_of_the_readme_runs():
    scope: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, scope)
    assert scope["y"].shape == (4, 10)
    assert type(scope["network"]).__name__ == "ResNet"


def test_the_page_on_a_network_of_ones_own_runs_and_learns():
    text = (ROOT / "docs" / "your-own-network.md").read_text()
    scope: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len([line for line in blocks[0].split("class ")[1].splitlines() if line.strip()]) <= 24
    exec(blocks[0], scope)
    torch.manual_seed(1)
    clean = torch.randn(500, 1, 100).cumsum(dim=-1) / 10
    noise = 0.8 * torch.randn_like(clean)

    def error(name: str) -> float:
        return (scope[name](clean + noise) - clean).square().mean().item()

    assert error("for_much_noise") < 0.5 * noise.square().mean()
    assert error("for_much_noise") < error("for_little_noise")
    for block in blocks[1:]:
        exec(block, scope)


def test_the_page_on_scale_space_runs():
    (block,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "scale-space.md").read_text(), re.DOTALL
    )
    scope: dict[str, object] = {}
    exec(block, scope)
    assert scope["network"](torch.rand(1, 1, 32, 32)).shape == (1, 2, 8, 8)


def test_every_folder_is_on_the_page():
    package = ROOT / "mip_lightning"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    assert [name for name in sorted(folders) if f"`{name}/`" not in ARCHITECTURE] == []


def test_the_root_of_the_package_holds_four_files():
    files = {path.name for path in (ROOT / "mip_lightning").iterdir() if path.is_file()}
    assert files == {"__init__.py", "__main__.py", "errors.py", "py.typed"}


def test_a_file_that_no_init_exports_begins_with_an_underscore():
    for init in (ROOT / "mip_lightning").rglob("*/__init__.py"):
        text = init.read_text()
        for path in init.parent.glob("[!_]*.py"):
            is_command = 'if __name__ == "__main__"' in path.read_text()
            assert is_command or f".{path.stem} import" in text, path


def test_no_test_imports_another():
    for path in (ROOT / "tests").rglob("*.py"):
        assert not re.search(r"^\s*(?:from|import) test_", path.read_text(), re.MULTILINE), path


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "docs/performance.md",
        "docs/registration.md",
        "docs/results.md",
        "docs/scale-space.md",
        "docs/your-own-network.md",
    ],
)
def test_every_link_leads_somewhere(document):
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (ROOT / document).parent.joinpath(target).exists(), target


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda p: p.name
)
def test_every_experiment_names_what_exists(path: Path, capsys):
    from mip_lightning.cli.main import main

    with pytest.raises(SystemExit) as exit_info:
        main(["fit", "--config", str(path), "--print_config"])
    assert exit_info.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["run_name"] == path.stem
