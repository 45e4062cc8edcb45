"""What the command line says of a wrong value: one line, and the way out."""

import difflib
from collections.abc import Iterator
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

# To import them is also what lets a configuration name their classes by short names.
from typing_extensions import override

from mip_lightning import callbacks, data, networks, priors, tasks
from mip_lightning.errors import UsageError
from mip_lightning.hypernetworks import encodings

NOISE = (
    "Does not validate against any of the Union subtypes",
    "Subtypes:",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Expected a path but",
)
"""Lines of a parser's message that say nothing to a user."""

UNKNOWN_CLASS = "Expected a dot import path string:"
"""How the parser says that a class is not known."""


class OneLineParser(LightningArgumentParser):
    """Says what is wrong with the arguments in one line."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if ex is not None and (usage := usage_error(ex)):
            message = str(usage)
        self.exit(2, f"mip-lightning: error: {one_line(message)}\n")


def usage_error(error: BaseException | None) -> UsageError | None:
    """The usage error behind an error, which the parser may have wrapped."""
    for cause in _causes(error):
        if isinstance(cause, UsageError):
            return cause
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def one_line(message: str) -> str:
    """What a message of the parser tells a user, in one line."""
    kept = []
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        if text.startswith("Given value"):
            break
        if text.startswith("the following arguments are required"):
            text += ": give them, or a file that names them by --config"
        if text.startswith(UNKNOWN_CLASS):
            text = _unknown_class(text.removeprefix(UNKNOWN_CLASS).strip())
        if text and not text.startswith(NOISE):
            kept.append(text)
    return " ".join(kept)


def _unknown_class(name: str) -> str:
    known = [
        n
        for package in (tasks, callbacks, data, networks, priors, encodings)
        for n, value in vars(package).items()
        if isinstance(value, type)
    ]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return (
        f"there is no class {name!r}{hint}: name one of this library, or another by its import path"
    )
