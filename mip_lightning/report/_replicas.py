"""Which runs are replicas of each other, and what to call those that are not."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from mip_lightning.errors import UsageError
from mip_lightning.utilities.files import load_yaml

Config = dict[str, Any]
Differences = dict[tuple[str, ...], dict[int, Any]]
"""For each key, as its parts, the values by the position of their configuration."""

NO_RESULT_DEPENDS_ON = (
    "run_name",
    "run_dir",
    "predictions",  # the file of `predict`
    "verbose",  # of `test` and `validate`: whether they print their metrics
    "checkpoint.dirpath",
    "checkpoint.filename",
    "checkpoint.verbose",
    "trainer.default_root_dir",
    "trainer.logger",
    "trainer.log_every_n_steps",
    "trainer.enable_autolog_hparams",
    "trainer.model_registry",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
)
"""What names a run and its files, or shows how it goes on. Whatever might change a number counts:
devices and precision change rounding, workers the order of random numbers."""

SEED, CHECKPOINT = "seed_everything", "ckpt_path"
FORMULATION = ("model", "init_args", "formulation")
LONGEST = 30
"""Characters of a value in a name."""

_NODE = object()  # stands for any mapping without a class
_UNSET = object()  # stands for the value of a key that is not there


class Run(NamedTuple):
    """A folder that a command wrote.

    Attributes:
        folder: The folder.
        config: Its configuration; the first one where the run was resumed.
        relevant: What of it tells the run from its replicas.
    """

    folder: Path
    config: Config
    relevant: Config


def read_runs(folders: Iterable[Path], kind: str) -> list[Run]:
    """The runs in these folders.

    Args:
        folders: The folders.
        kind: What they hold, for messages: ``run`` or ``test``.

    Raises:
        UsageError: If a folder holds none, or is given twice.
    """
    runs: dict[Path, Run] = {}
    for folder in folders:
        if folder.resolve() in runs:
            raise UsageError(f"{folder} is given twice: name each {kind} once")
        runs[folder.resolve()] = _read(folder, kind)
    return list(runs.values())


def replicas(runs: Iterable[Run]) -> list[list[Run]]:
    """The runs in groups that differ in their seeds only, in the order of first appearance."""
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if run.relevant == group[0].relevant:
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def names_of_groups(groups: Sequence[Sequence[Run]]) -> list[str]:
    """What each group is called: its formulation, and what tells it from the others."""
    return _names([group[0] for group in groups], [group[0].relevant for group in groups])


def names_of_runs(runs: Sequence[Run]) -> list[str]:
    """The same for single runs, which a seed may tell apart."""
    return _names(runs, [{"seed": run.config.get(SEED), **run.relevant} for run in runs])


def differences(configs: Sequence[Config]) -> Differences:
    """In which keys configurations differ.

    Where classes differ, so do their arguments: these are compared among those that have them.
    """
    found: Differences = {}
    _compare((), dict(enumerate(configs)), found)
    return found


def dotted(path: Sequence[str], values: Mapping[int, Any]) -> str:
    """A key as ``--by`` takes it."""
    classes = all(isinstance(value, dict) and "class_path" in value for value in values.values())
    return ".".join((*path, "class_path") if classes else path)


def text(value: Any) -> str:
    """A value in a few characters: a class by its short name, and the middle of a long one cut."""
    whole = _whole_text(value)
    half = (LONGEST - 1) // 2
    return whole if len(whole) <= LONGEST else f"{whole[:half]}…{whole[-half:]}"


def _compare(path: tuple[str, ...], values: Mapping[int, Any], found: Differences) -> None:
    heads = [v.get("class_path", _NODE) if isinstance(v, dict) else v for v in values.values()]
    differ = any(head != heads[0] for head in heads)
    if differ:
        found[path] = dict(values)
    nodes = {index: _children(v) for index, v in values.items() if isinstance(v, dict)}
    for key in dict.fromkeys(key for node in nodes.values() for key in node):
        below = {
            index: node.get(key, _UNSET)
            for index, node in nodes.items()
            if key in node or not differ
        }
        _compare((*path, *key), below, found)


def _children(node: Config) -> dict[tuple[str, ...], Any]:
    """What a mapping holds; the arguments of a class as if they stood next to it."""
    children: dict[tuple[str, ...], Any] = {(key,): value for key, value in node.items()}
    if children.pop(("class_path",), None) is not None:
        arguments = children.pop(("init_args",), None) or {}
        children |= {("init_args", key): value for key, value in arguments.items()}
    return children


def _names(runs: Sequence[Run], configs: Sequence[Config]) -> list[str]:
    found = differences(configs)
    found.pop(FORMULATION, None)  # it has the first word
    words = {path: [part for part in path if part != "init_args"] for path in found}
    names = []
    for index, run in enumerate(runs):
        parts = [
            f"{_short(words[path], list(words.values()))} {text(values[index])}"
            for path, values in found.items()
            if values.get(index, _UNSET) is not _UNSET
        ]
        names.append(", ".join([_formulation(run), *parts]))
    times = Counter(names)  # values that were cut, or classes of one name, may look the same
    return [
        name if times[name] == 1 else f"{name}, {run.folder}"
        for name, run in zip(names, runs, strict=True)
    ]


def _short(key: Sequence[str], keys: Sequence[Sequence[str]]) -> str:
    """The end of a key that no other key shares."""
    for length in range(1, len(key)):
        if sum(list(other[-length:]) == list(key[-length:]) for other in keys) == 1:
            return ".".join(key[-length:])
    return ".".join(key)


def _formulation(run: Run) -> str:
    model = run.config["model"]
    return str((model.get("init_args") or {}).get("formulation") or text(model))


def _whole_text(value: Any) -> str:
    if value is None:
        return "null"
    if value is _UNSET:
        return "not set"
    if isinstance(value, dict):
        if "class_path" in value:
            return str(value["class_path"]).rpartition(".")[2]
        return "{" + ", ".join(f"{k}: {_whole_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_whole_text, value)) + "]"
    return str(value)


def _read(folder: Path, kind: str) -> Run:
    first = folder / "config.yaml"
    if not first.is_file():
        raise UsageError(f"{folder} is not the folder of a {kind}: it has no config.yaml")
    config = _load(first)
    relevant = _relevant(config)
    resumed_with: Config = {}
    for number in count(1):
        path = folder / f"config_{number}.yaml"  # what a run is called that is resumed
        if not path.is_file():
            break
        later = {**_relevant(_load(path)), CHECKPOINT: relevant[CHECKPOINT]}
        for key, values in differences([relevant, later]).items():
            resumed_with[".".join(key)] = values.get(1)
    if resumed_with:
        relevant["resumed with"] = resumed_with
    return Run(folder, config, relevant)


def _load(path: Path) -> Config:
    config = load_yaml(path)
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise UsageError(f"{path} is not the configuration of a run: it has no model")
    return config


def _relevant(config: Config) -> Config:
    relevant = deepcopy(config)
    for key in (SEED, *NO_RESULT_DEPENDS_ON):
        *parents, last = key.split(".")
        node: Any = relevant
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.pop(last, None)
    relevant[CHECKPOINT] = _which_checkpoint(config.get(CHECKPOINT))
    return relevant


def _which_checkpoint(path: str | None) -> str | None:
    """The checkpoint's role: each replica has one of its own, but best and last are not alike."""
    if path is None:
        return None
    name = Path(path).name
    return name if name in ("best.ckpt", "last.ckpt") else "another"
