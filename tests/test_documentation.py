"""What the documents say is so."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT

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


def test_every_room_is_on_the_page():
    package = ROOT / "mip_lightning"
    rooms = {p.name for p in package.glob("*.py")} | {
        f"{p.parent.name}/" for p in package.glob("*/*.py")
    }
    rooms -= {"__init__.py"}
    missing = [room for room in rooms if f"`{room}`" not in ARCHITECTURE]
    assert not missing


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
    from mip_lightning.cli import main

    with pytest.raises(SystemExit) as exit_info:
        main(["fit", "--config", str(path), "--print_config"])
    assert exit_info.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["run_name"] == path.stem
