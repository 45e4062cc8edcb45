"""What the command line says of a wrong value: one line, and the way out."""

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import ClassVar, NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

# To import them is also what lets a configuration name their classes by short names.
from typing_extensions import override

from mip_lightning import callbacks, data, networks, priors, tasks
from mip_lightning.cli._place import place_of
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


LINKED = "argument <lambda>(model) --> "
"""How the parser begins when it is given what the model decides."""

SCALARS = ("int", "float", "bool", "str")


class OneLineParser(LightningArgumentParser):
    """Says what is wrong with the arguments in one line."""

    given: ClassVar[Sequence[str]] = ()
    """The arguments of the command that runs. Of the class, for jsonargparse makes parsers within
    parsers by it, and theirs are the errors."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if ex is not None and (usage := usage_error(ex)):
            message = str(usage)
        self.exit(2, f"mip-lightning: error: {one_line(message, self.given)}\n")


def usage_error(error: BaseException | None) -> UsageError | None:
    """The usage error behind an error, which the parser or Lightning may have wrapped.

    What Lightning calls a misconfiguration is one, and so is a package that is not installed.
    """
    for cause in _causes(error):
        if isinstance(cause, UsageError):
            return cause
        if isinstance(cause, (MisconfigurationException, ModuleNotFoundError)):
            return UsageError(str(cause))
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def one_line(message: str, args: Sequence[str] = ()) -> str:
    """What a message of the parser tells a user, in one line.

    Args:
        message: The message.
        args: The arguments of the command line, in which the place of a wrong value is found.
    """
    if message.startswith(LINKED):
        option = message.removeprefix(LINKED).split(":")[0]
        return (
            f"{option} is the task's own, its class attribute: to choose by another metric, add"
            " the callback ModelCheckpoint"
        )
    value = _value_in(message)
    is_scalar = any(f"Expected a <class '{kind}'>" in message for kind in SCALARS)
    kept = []
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        if text.startswith("Given value"):
            break
        if text.startswith("the following arguments are required"):
            text += ": give them, or a file that names them by --config"
        if text.startswith(UNKNOWN_CLASS):
            text = "" if is_scalar else _unknown_class(text.removeprefix(UNKNOWN_CLASS).strip())
        if text and not text.startswith(NOISE):
            kept.append(text)
    text = " ".join(kept)
    if is_scalar and value is not None and "Got value" not in text:
        text += f". Got value: {value}"
    if match := re.match(r'Parser key "([^"]+)":', text):
        return f"{place_of(match[1], value, args)}:{text[match.end() :]}"
    if match := re.match(r"Option '([^']+)' is not accepted", text):
        return f"there is no option {place_of(match[1], None, args)}"
    return text


def _value_in(message: str) -> str | None:
    found = re.search(r"(?:Got value|Given value|Expected a dot import path string): (.*)", message)
    return found[1].strip() if found else None


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
