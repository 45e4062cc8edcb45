"""The command lines of the documents: where they stand, and how one is run as by a user."""

import contextlib
import itertools
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from helpers import ROOT

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "cli.yaml",
    *sorted((ROOT / "experiments").glob("*.yaml")),
]

PROGRAMS = "mip-lightning|make|pip|python|torchrun|experiments/[a-z_]+[.]sh"
SUBCOMMANDS = "fit|validate|test|predict|export|select-gamma"
SHELLS = ("bash", "sh", "shell", "console")


@dataclass(frozen=True)
class Command:
    """A command line as it stands, without its comment; a loop is one command.

    ``section`` and ``block`` number what it stands in, and ``variables`` are the assignments of
    its block.
    """

    text: str
    document: str
    section: int = 0
    block: int = 0
    variables: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    @property
    def expanded(self) -> str:
        """The command with the variables of its block written out."""
        text = self.text
        for name, value in self.variables:
            text = text.replace(f"${name}", value)
        return text

    @property
    def options(self) -> dict[str, str]:
        """The options that have a value; the last of each name."""
        words = shlex.split(self.expanded)
        pairs = zip(words, [*words[1:], "--"], strict=True)
        return {k[2:]: v for k, v in pairs if k.startswith("--") and not v.startswith("--")}

    def __str__(self) -> str:
        return f"{self.document}: {self.expanded}"


def documented(path: Path) -> list[Command]:
    """The command lines of a document: of its shell blocks, or of a YAML file's comment."""
    name, text = str(path.relative_to(ROOT)), path.read_text()
    if path.suffix == ".yaml":
        lines = re.findall(rf"^#\s+((?:{PROGRAMS}) .*)$", text, re.MULTILINE)
        return [Command(line, name) for line in lines]
    commands: list[Command] = []
    section = 0
    for number, (heading, language, block) in enumerate(
        re.findall(r"^(?:#+ ([^\n]*)$|```(\w*)\n(.*?)^```$)", text, re.MULTILINE | re.DOTALL)
    ):
        if heading:
            section = number
        if language == "console":
            block = "\n".join(re.findall(r"^\$ (.*)$", block, re.MULTILINE))
        if language in SHELLS:
            commands += _commands_of(block, Command("", name, section, number))
    return commands


def _commands_of(block: str, place: Command) -> Iterator[Command]:
    variables: list[tuple[str, str]] = []
    loop: list[str] = []
    for raw in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
        line = re.sub(r"(^|\s+)#.*$", "", raw).rstrip()
        if loop or line.startswith("for "):
            loop.append(line)
            line = ""
            if loop[-1] == "done":
                line, loop = "\n".join(loop), []
        if assigned := re.fullmatch(r"(\w+)=(\S+)", line):
            variables.append((assigned[1], assigned[2]))
        elif line:
            yield replace(place, text=line.removeprefix("$ "), variables=tuple(variables))


def quoted(path: Path) -> set[str]:
    """The commands and options that a document names in passing, in a line of text."""
    text = path.read_text()
    if path.suffix == ".yaml":
        spans = re.findall(r"(--[a-z][\w.]* \S+(?:\s+#?\s*--[a-z][\w.]* \S+)*)", text)
        spans = [span for span in spans if span not in " ".join(map(str, documented(path)))]
        spans += re.findall(r"`([^`]+)`", text)
    else:
        text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        spans = re.findall(r"`([^`]+)`", text)
    plain = {re.sub(r"[\s#]+", " ", span) for span in spans}
    return {
        span for span in plain if re.match(rf"(({PROGRAMS}|{SUBCOMMANDS}) \S|--[\w.]+ \S)", span)
    }


@dataclass(frozen=True)
class Outcome:
    """What a command has left: its exit status (None if it was ended), what it said, its time."""

    status: int | None
    out: str
    err: str
    seconds: float

    def __str__(self) -> str:
        ended = f"exit status {self.status}" if self.status is not None else "out of time, killed"
        said = f"--- stdout\n{self.out[-6000:]}\n--- stderr\n{self.err[-6000:]}"
        return f"{ended} after {self.seconds:.0f} s\n{said}"


def run(
    script: str, folder: Path, environment: dict[str, str], timeout: float, stop: threading.Event
) -> Outcome:
    """Run a command at terminals of its own; what it started ends with it, at the latest."""
    start = time.monotonic()
    terminals = [pty.openpty() for _ in range(2)]
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder, env=environment, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=terminals[0][1], stderr=terminals[1][1],
    )  # fmt: skip
    said = {ours: b"" for ours, _ in terminals}
    # The terminals stay open here to the end: some systems lose what is unread at the last close.
    has_ended = False
    while not stop.is_set() and time.monotonic() < start + timeout:
        has_ended = process.poll() is not None
        readable = select.select(said, [], [], 0.0 if has_ended else 0.5)[0]
        for ours in readable:
            said[ours] += os.read(ours, 65536)
        if has_ended and not readable:
            break
    status = process.returncode if has_ended else None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for terminal in itertools.chain(*terminals):
        os.close(terminal)
    out, err = (
        re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r(?=\n)", "", text.decode(errors="replace"))
        for text in said.values()
    )
    return Outcome(status, out, err, time.monotonic() - start)
