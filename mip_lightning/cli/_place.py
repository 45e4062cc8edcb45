"""Where a user said something: which option of the command line, or which key of which file."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from mip_lightning.utilities.files import load_yaml

CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
ARGUMENTS = "init_args"


def check_config_files(args: Sequence[str]) -> None:
    """Refuse configurations that cannot be read, which the parser does not name.

    Args:
        args: The arguments of the command line.

    Raises:
        UsageError: If a file that they name is not YAML in UTF-8.
    """
    for path in _config_files(args):
        load_yaml(path)


def place_of(key: str, value: str | None, args: Sequence[str]) -> str:
    """The whole path of a key of which the parser tells the end.

    Args:
        key: What the parser tells, such as ``lr``.
        value: The value that it refused, as text; ``None`` for any.
        args: The arguments of the command line.

    Returns:
        The option (``--optimizer.lr``), or the key and its file; the key itself where it is not
        found.
    """
    parts = _without_arguments(key.split("."))
    for option, given in _options(args):
        words = option.removeprefix("--").removesuffix("+").split(".")
        if _ends(words, parts) and value in (None, given):
            return option
    for file in _config_files(args):
        for path, found in _walk(load_yaml(file)):
            if _ends(path, parts) and (value is None or value in _texts(found)):
                return f"{'.'.join(path)} in {file}"
    return key


def _options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each option with its value; an option without one has the empty string."""
    for arg, following in pairwise([*args, ""]):
        if arg.startswith("--"):
            option, equals, value = arg.partition("=")
            yield option, value if equals else following


def _config_files(args: Sequence[str]) -> list[Path]:
    values = [value for _, value in _options(args)]
    values += [value for option, value in pairwise(args) if option == "-c"]
    paths = [Path(value) for value in values if value.endswith(CONFIG_SUFFIXES)]
    return [path for path in paths if path.is_file()]


def _walk(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(node, list):
        node = dict(enumerate(node))
    for key, value in node.items() if isinstance(node, dict) else ():
        yield (*path, str(key)), value
        yield from _walk(value, (*path, str(key)))


def _without_arguments(path: Iterable[str]) -> list[str]:
    return [part for part in path if part != ARGUMENTS]


def _ends(path: Iterable[str], end: Sequence[str]) -> bool:
    return _without_arguments(path)[-len(end) :] == list(end)


def _texts(value: Any) -> tuple[str, ...]:
    """How the parser tells a value: a class by its path."""
    return (str(value), str(value.get("class_path"))) if isinstance(value, dict) else (str(value),)
