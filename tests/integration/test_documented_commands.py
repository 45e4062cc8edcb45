"""Every command line of the documents is run as it stands, by the installed command."""

import os
import re
import runpy
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import command_promises
import pytest
import yaml
from command_folders import copy_checkout, copy_shortened, data_for, shortened, write_own_package
from documented_commands import DOCUMENTS, SUBCOMMANDS, Command, Outcome, documented, quoted, run
from helpers import ROOT, write_mnist

NOT_RUN = {
    "make test": "it would run this test",
    "make test-all": "it would run this test",
    "make test-lowest": "it would run this test",
    "pip install .": "it would change the environment; test_installation.py installs the wheel",
    "python -m benchmarks": "minutes of timings; test_benchmarks.py runs each of them, small",
    "--out FILE": "an option of the benchmarks",
}
"""Commands, by how they begin, and why they are not run."""

IN_PASSING = yaml.safe_load((ROOT / "tests" / "in_passing.yaml").read_text())
OWN_CLASSES = "mip-lightning fit --config denoising.yaml --config callbacks.yaml"
PLACEHOLDER = r"\b(DATA_)?DIR\b"
TIMEOUT = 300.0
PATIENCE = {"experiments/": 12.0, "for ": 3.0, "make check": 2.0}
"""How many times as long some commands may take."""


def is_run(command: Command) -> bool:
    return not any(command.text == name or command.text.startswith(f"{name} ") for name in NOT_RUN)


ALL = [command for path in DOCUMENTS for command in documented(path)]


def scenarios() -> list[list[Command]]:
    """Commands that go on from one another, in order; each list has a folder of its own.

    Those of one section do so if they name a run, those of a block without a run do not.
    """
    in_block, in_folder = defaultdict(list), defaultdict(list)
    for command in filter(is_run, ALL):
        in_block[command.document, command.section, command.block].append(command)
    for (document, section, block), commands in in_block.items():
        together = any("runs/" in command.expanded for command in commands)
        for number, command in enumerate(commands):
            key = (document, section) if together else (document, section, block, number)
            in_folder[key].append(command)
    found = list(in_folder.values())
    for said in IN_PASSING:
        commands = [Command(text, said["document"]) for text in said["commands"]]
        goes_on = [c for c in found if c[0].expanded == commands[0].text and len(commands) > 1]
        if goes_on:
            max(goes_on, key=len).extend(commands[1:])
        else:
            found.append(commands)
    found.sort(key=len, reverse=True)
    kept: list[list[Command]] = []
    for commands in found:  # unless they are among those that are run already
        names = {command.expanded for command in commands}
        if not any(names <= {command.expanded for command in other} for other in kept):
            kept.append(commands)
    return kept


SCENARIOS = scenarios()
VARIATIONS = r" --(model|data|optimizer)"
FIRST = {OWN_CLASSES} | {
    command.expanded
    for command in documented(ROOT / "README.md")
    if not re.search(VARIATIONS, command.expanded)
}
"""What the ordinary suite runs: the README's commands but those that change a value of cli.yaml."""


class Runs:
    """Runs scenarios two at a time, each command when those before it have ended."""

    def __init__(self, installed: Path, home: Path) -> None:
        self.installed, self.home = installed, home
        self.stop, self.one_writes = threading.Event(), threading.Lock()
        self.outcomes: dict[Command, Future[Outcome]] = {}
        path = [str(installed / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        kept = ("LANG", "LD_LIBRARY_PATH", "TMPDIR")
        self.environment = {name: os.environ[name] for name in kept if name in os.environ} | {
            "PATH": ":".join(path),
            "PYTHONPATH": str(installed),
            "HOME": str(home),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "TERM": "xterm",
            "COLUMNS": "200",
        }

    def run(self, commands: list[Command], folder: Path) -> None:
        """Run the commands of a scenario in a folder, and look for what is promised of them."""
        for number, command in enumerate(commands):
            try:
                if number == 0:
                    self.prepare(folder, checkout=command.text.startswith("make "))
                self.outcomes[command].set_result(self.run_one(command, folder))
            except BaseException as error:  # it may say that a test is to be skipped
                self.outcomes[command].set_exception(error)

    def prepare(self, folder: Path, checkout: bool) -> None:
        """Put into a folder what commands find there."""
        if checkout:
            copy_checkout(folder, self.installed)
        else:
            write_own_package(folder)  # it would be linted where it stands in a checkout
        copy_shortened(folder)

    def run_one(self, command: Command, folder: Path) -> Outcome:
        """Run a command and look for what is promised of it."""
        if re.search(PLACEHOLDER, command.text):
            with self.one_writes:
                data = data_for(command.text, self.home)
            command = replace(command, text=re.sub(PLACEHOLDER, str(data), command.text))
        times = [more for start, more in PATIENCE.items() if command.text.startswith(start)]
        patience = TIMEOUT * max(times, default=1.0)
        outcome = run(command.expanded, folder, self.environment, patience, self.stop)
        assert outcome.status == 0, f"{command}\n{outcome}"
        command_promises.check(command, folder, outcome)
        return outcome


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, installed: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Command, "Future[Outcome]"]]:
    """What is to come of each command that is asked for, and of those before it."""
    asked = {
        item.callspec.params["command"]
        for item in request.session.items
        if item.name.startswith(test_a_command_does_what_its_document_says.__name__)
    }
    runs = Runs(installed, tmp_path_factory.mktemp("home"))
    write_mnist(runs.home / "data" / "mnist")
    pool = ThreadPoolExecutor(2)
    for scenario in SCENARIOS:
        last = max((n for n, command in enumerate(scenario) if command in asked), default=-1)
        if commands := scenario[: last + 1]:
            runs.outcomes |= {command: Future() for command in commands}
            pool.submit(runs.run, commands, tmp_path_factory.mktemp("commands"))
    yield runs.outcomes
    runs.stop.set()
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[] if command.expanded in FIRST else pytest.mark.slow)
        for commands in SCENARIOS
        for command in commands
    ],
    ids=str,
)
def test_a_command_does_what_its_document_says(command, outcomes):
    result = outcomes[command].result()
    print(f"{result.seconds:.0f} s\n{result.err}")


def test_no_command_of_a_document_is_missed():
    ran = {command.expanded for commands in SCENARIOS for command in commands}
    for command in ALL:
        assert command.expanded in ran or not is_run(command), command
    for path in DOCUMENTS:
        for span in quoted(path):
            words = set(re.sub(r"[),]+$", "", span).split())
            not_run = any(span.startswith(name) for name in NOT_RUN)
            assert not_run or any(words <= set(text.split()) for text in ran), (path.name, span)
    scripts = list((ROOT / "experiments").glob("*.sh"))
    assert all(any(f"experiments/{path.name}" in text for text in ran) for path in scripts)
    ran |= {path.read_text().replace("$study", "flowers") for path in scripts}
    for path in (ROOT / "experiments").glob("*.yaml"):
        assert any(f"experiments/{path.name}" in text for text in ran), path.name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_as_many_commands_are_found_as_a_document_has(path):
    kinds = rf"mip-lightning (?:{SUBCOMMANDS}|\$command)\b|python -m [a-z_]+|^make [a-z-]+"
    found = [command.text for command in documented(path)]
    found += [span for span in quoted(path) if not span.startswith("make ")]
    assert sorted(re.findall(kinds, "\n".join(found), re.MULTILINE)) == sorted(
        re.findall(kinds, path.read_text(), re.MULTILINE)
    )


def test_what_is_said_in_passing_is_said():
    for said in IN_PASSING:
        text = re.sub(r"\s*\n(#\s)?\s*", " ", (ROOT / said["document"]).read_text())
        assert said["says"] in text, said


@pytest.mark.parametrize("target", ["test", "test-all", "test-lowest"])
def test_make_would_run_the_suite(target):
    said = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert "python -m pytest" in said.stdout


@pytest.mark.parametrize(
    "command", [c for c in ALL if c.text.startswith("python -m benchmarks")], ids=str
)
def test_a_benchmark_takes_its_options(command, monkeypatch):
    monkeypatch.setattr(sys, "argv", [*command.text.split()[2:], "--print_config"])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_module("benchmarks", run_name="__main__")
    assert exit_info.value.code == 0


def test_a_shortened_configuration_has_all_that_users_have_by_default():
    for path in (ROOT / "cli.yaml", *(ROOT / "experiments").glob("*.yaml")):
        whole = yaml.safe_load(path.read_text())
        short = shortened(whole)
        assert short.keys() == whole.keys()
        assert short["trainer"].keys() == whole["trainer"].keys()
        kinds = [
            [c["class_path"] for c in x["trainer"].get("callbacks", [])] for x in (short, whole)
        ]
        assert kinds[0] == kinds[1]
        assert short["trainer"]["max_epochs"] == 2
