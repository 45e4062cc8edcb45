"""Which of the primary's parameters are predicted: all, by name, by pattern, by layer type."""

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn
from typing_extensions import override

from mip_lightning.errors import UsageError

NORMALIZATION_LAYERS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
"""Layers whose affine parameters are not predicted but train as usual (paper, Section A.2)."""

_T = TypeVar("_T")

WILDCARDS = frozenset("*?[")


class Selection(ABC):
    """Chooses the predicted parameters of a primary; the others train as usual.

    Affine parameters of normalization layers are left out, unless a selection names them
    exactly: by their whole name, or by the type of their layer. So are frozen parameters
    (``requires_grad=False``: a backbone, fixed positions), unless named by their whole name, and
    parameters of integers always.
    """

    @abstractmethod
    def names(self, primary: nn.Module) -> set[str]:
        """Names of the chosen parameters, by any of their names where they are tied.

        Raises:
            UsageError: If a part of the selection chooses nothing.
        """

    def select(self, primary: nn.Module) -> dict[str, nn.Parameter]:
        """The chosen parameters in the primary's order, each by its first name if it is tied.

        Those without elements are left out: there is nothing to predict.

        Raises:
            UsageError: If nothing is chosen, or a part of the selection chooses nothing.
        """
        everything = dict(primary.named_parameters(remove_duplicate=False))
        if not everything:
            raise UsageError(
                f"primary={type(primary).__name__} has no parameters to predict: give a network"
                " with weights"
            )
        chosen = {everything[name] for name in self.names(primary)}
        whole = [n for n, p in everything.items() if p in chosen and not _has_numbers(p)]
        if whole:
            raise UsageError(
                f"{self} selects {whole[0]}, which holds {everything[whole[0]].dtype}: weights that"
                " are predicted are real numbers"
            )
        selected = {n: p for n, p in primary.named_parameters() if p in chosen}
        if not selected:
            raise UsageError(
                f"{self} selects only parameters of normalization layers and frozen ones"
                " (requires_grad=False), which are not predicted unless named exactly: name them,"
                " or other parameters"
            )
        lazy = [n for n, p in selected.items() if isinstance(p, nn.UninitializedParameter)]
        if lazy:
            raise UsageError(
                f"primary: {lazy[0]} has no shape yet: run the network once on an input, which"
                " makes its lazy layers"
            )
        with_elements = {n: p for n, p in selected.items() if p.numel()}
        if not with_elements:
            raise UsageError(
                f"{self} selects only {', '.join(selected)}, which has no elements: name others"
            )
        return with_elements


@dataclass(frozen=True)
class All(Selection):
    """All parameters but frozen ones and those of normalization layers."""

    @override
    def names(self, primary: nn.Module) -> set[str]:
        return set(_names(primary)) - _left_out(primary)


@dataclass(frozen=True)
class ByName(Selection):
    """Parameters whose name matches a glob pattern: ``encoder.*``, ``*.weight``, ``head.bias``.

    ``*`` matches any part of a name, dots too.

    Args:
        patterns: The patterns; a name without ``*``, ``?`` and ``[`` is meant exactly.
    """

    patterns: Sequence[str]

    @override
    def names(self, primary: nn.Module) -> set[str]:
        names = _names(primary)
        left_out = _left_out(primary)
        chosen: set[str] = set()
        for pattern in _given(self.patterns):
            matches = {name for name in names if name == pattern or fnmatchcase(name, pattern)}
            if not matches:
                raise _no_match(pattern, names)
            chosen |= matches - left_out if WILDCARDS & set(pattern) else matches
        return chosen


@dataclass(frozen=True)
class ByRegularExpression(Selection):
    """Parameters in whose name a regular expression is found (``re.search``).

    Args:
        patterns: The expressions.

    Raises:
        UsageError: If one is not a regular expression.
    """

    patterns: Sequence[str]

    def __post_init__(self) -> None:
        for pattern in _given(self.patterns):
            try:
                re.compile(pattern)
            except re.error as error:
                raise UsageError(
                    f"patterns: {pattern!r} is not a regular expression ({error}): correct it, or"
                    " use ByName for a glob pattern"
                ) from error

    @override
    def names(self, primary: nn.Module) -> set[str]:
        names = _names(primary)
        chosen: set[str] = set()
        for pattern in self.patterns:
            matches = {name for name in names if re.search(pattern, name)}
            if not matches:
                raise _no_match(pattern, names)
            chosen |= matches
        return chosen - _left_out(primary)


@dataclass(frozen=True)
class ByType(Selection):
    """Parameters of all modules of some types, with those of the modules inside them.

    Args:
        types: Classes, or the names of classes that the primary holds (``Conv2d``,
            ``BasicBlock``).
    """

    types: Sequence[str | type[nn.Module]]

    @override
    def names(self, primary: nn.Module) -> set[str]:
        left_out = _left_out(primary)
        known = sorted({type(module).__name__ for module in primary.modules()})
        chosen: set[str] = set()
        for kind in _given(self.types):
            found = {
                f"{prefix}.{name}" if prefix else name: isinstance(module, NORMALIZATION_LAYERS)
                for prefix, module in primary.named_modules(remove_duplicate=False)
                if _is_of(module, kind)
                for name, _ in module.named_parameters(remove_duplicate=False)
            }
            if not found:
                raise _no_match(kind if isinstance(kind, str) else kind.__name__, known)
            chosen |= {name for name, meant in found.items() if meant or name not in left_out}
        return chosen


def as_selection(predicted: Selection | str | Sequence[str] | None) -> Selection:
    """A selection as a user gives it: itself, glob patterns, or ``None`` for all parameters."""
    if predicted is None:
        return All()
    if isinstance(predicted, str):
        return ByName([predicted])
    return predicted if isinstance(predicted, Selection) else ByName(predicted)


def _names(primary: nn.Module) -> list[str]:
    return [name for name, _ in primary.named_parameters(remove_duplicate=False)]


def _normalization(primary: nn.Module) -> set[str]:
    """Names of the affine parameters of normalization layers."""
    affine = {
        parameter
        for module in primary.modules()
        if isinstance(module, NORMALIZATION_LAYERS)
        for parameter in module.parameters(recurse=False)
    }
    return {n for n, p in primary.named_parameters(remove_duplicate=False) if p in affine}


def _left_out(primary: nn.Module) -> set[str]:
    """Names of the parameters that only an exact name selects."""
    frozen = {
        name
        for name, parameter in primary.named_parameters(remove_duplicate=False)
        if not (parameter.requires_grad and _has_numbers(parameter))
    }
    return _normalization(primary) | frozen


def _has_numbers(parameter: nn.Parameter) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()


def _is_of(module: nn.Module, kind: str | type[nn.Module]) -> bool:
    if isinstance(kind, str):
        return any(kind == ancestor.__name__ for ancestor in type(module).__mro__)
    return isinstance(module, kind)


def _given(values: Sequence[_T]) -> Sequence[_T]:
    if not values or isinstance(values, str):
        raise UsageError(f"{values!r} selects nothing: give a list of one or more")
    return values


def _no_match(pattern: str, names: Iterable[str]) -> UsageError:
    names = list(names)
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
    return UsageError(f"predicted: {pattern!r} matches nothing: there are {', '.join(near)}, ...")
