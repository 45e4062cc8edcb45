"""Tensors in nested containers: find them, map them, rebuild what holds them."""

import copy
import dataclasses
import functools
import gc
import reprlib
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

# Private by name, and yet where libraries register their containers (torch.export asks them to);
# torch has no public way to open these. `test_outputs_of_draws_are_joined_whatever_holds_them`
# tells if it is gone; without it, such containers are opened as the mappings that most of them are.
from torch.utils._pytree import tree_flatten, tree_unflatten

from mip_lightning.utilities._batch_types import batch_type

Inputs: TypeAlias = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""What the primary is called with: one tensor, positional or keyword arguments."""

PLAIN = (type(None), bool, int, float, complex, str, bytes, range, torch.dtype, torch.device)
"""Values that hold no tensor and never change."""

_VALUES = (Tensor, *PLAIN)

_CODE = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, nn.Module)
"""Objects that may hold tensors, none of them a part of a batch."""

_WHOLE = (Tensor, *PLAIN, *_CODE)
"""What is not a container."""


class Arguments(NamedTuple):
    """The arguments of one call of a network.

    Attributes:
        args: By position.
        kwargs: By keyword.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def as_arguments(inputs: Inputs) -> Arguments:
    """Positional and keyword arguments of the primary."""
    if isinstance(inputs, Arguments):
        return inputs
    if isinstance(inputs, Mapping):
        return Arguments((), dict(inputs))
    return Arguments(inputs if isinstance(inputs, tuple) else (inputs,), {})


class Container(NamedTuple):
    """A container.

    Attributes:
        form: How a key is written behind its name, as in ``[0]`` or ``.loss``.
        parts: What it holds, by key.
        rebuild: Makes another one of other parts.
    """

    form: str
    parts: dict[Any, Any]
    rebuild: Callable[[list[Any]], Any]


def open_container(value: Any) -> Container | None:
    """A container's parts; ``None`` for anything else.

    Containers are those that torch's pytree knows, dataclasses, sequences and mappings.
    """
    if isinstance(value, _WHOLE):
        return None
    is_builtin = type(value) in (list, tuple, dict)
    if not is_builtin:  # torch.compile takes no ``is_leaf``
        parts, spec = tree_flatten(value, is_leaf=lambda part: part is not value)
        if not (len(parts) == 1 and parts[0] is value):
            return _of_items(value, parts, lambda parts: tree_unflatten(parts, spec))
    is_dataclass = not is_builtin and dataclasses.is_dataclass(value)
    is_collection = isinstance(value, (Sequence, Mapping))
    if is_dataclass and not is_collection:
        fields = [field.name for field in dataclasses.fields(value)]
        names = dict.fromkeys([*fields, *getattr(value, "__dict__", ())])  # not only the fields
        held = {name: getattr(value, name) for name in names if hasattr(value, name)}
        return Container(".{}", held, functools.partial(_with_attributes, value, list(held)))
    if is_collection and not is_dataclass:
        parts = list(value.values() if isinstance(value, Mapping) else value)
        return _of_items(value, parts, functools.partial(_with_items, value))
    return None


def _of_items(value: Any, parts: list[Any], rebuild: Callable[[list[Any]], Any]) -> Container:
    if isinstance(value, Mapping):
        return Container("[{!r}]", dict(zip(value.keys(), parts, strict=True)), rebuild)
    fields = getattr(value, "_fields", ())  # of a named tuple
    if fields:
        return Container(".{}", dict(zip(fields, parts, strict=True)), rebuild)
    return Container("[{}]", dict(enumerate(parts)), rebuild)


def _with_attributes(value: Any, names: list[str], parts: list[Any]) -> Any:
    other = copy.copy(value)
    for name, part in zip(names, parts, strict=True):
        object.__setattr__(other, name, part)  # of a frozen one too
    return other


def _with_items(value: Any, parts: list[Any]) -> Any:
    make: Callable[..., Any] = type(value)
    if not isinstance(value, Mapping):
        return getattr(value, "_make", make)(parts)  # of a named tuple
    items = dict(zip(value, parts, strict=True))
    if type(value) is dict or not isinstance(value, dict):
        return make(items)
    other = copy.copy(value)  # keeps what else it has, such as a default_factory
    for key, part in items.items():
        other[key] = part
    return other


def leaves(value: Any) -> Iterator[Any]:
    """What a value holds that is not a container, in order.

    Objects that hold samples in their own way, such as packed sequences, come as they are.
    """
    if isinstance(value, Tensor):  # most are
        yield value
        return
    container = _opened(value)
    if container is None:
        yield value
    else:
        for part in container.parts.values():
            yield from leaves(part)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, in containers too, in order."""
    if isinstance(value, Tensor):
        yield value
    elif container := open_container(value):
        for part in container.parts.values():
            yield from tensors_in(part)


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Put something in the place of each tensor; containers without tensors stay the same object.

    Args:
        value: A tensor, a container, or anything else, which stays.
        function: Called with each tensor, in the order of ``tensors_in``.
    """

    def replace(name: str, leaf: Any) -> Any:
        return function(leaf) if isinstance(leaf, Tensor) else leaf

    return _mapped(value, replace, "", open_container)[0]


def map_leaves(value: Any, function: Callable[[str, Any], Any], name: str) -> Any:
    """Put something in the place of each leaf; containers in which none changes stay the same.

    Args:
        value: A container, or anything else, which is a leaf.
        function: Called with the name and the value of each leaf, in the order of ``leaves``.
        name: What the value is called, which names of leaves begin with: ``x.images[1]``.
    """
    return _mapped(value, function, name, _opened)[0]


def _opened(value: Any) -> Container | None:
    return None if batch_type(value) is not None else open_container(value)


def _mapped(
    value: Any,
    function: Callable[[str, Any], Any],
    name: str,
    opened: Callable[[Any], Container | None],
) -> tuple[Any, bool]:
    """The mapped value, and whether it is another."""
    container = None if isinstance(value, Tensor) else opened(value)
    if container is None:
        other = function(name, value)
        return other, other is not value
    mapped = [
        _mapped(part, function, name + container.form.format(key), opened)
        for key, part in container.parts.items()
    ]
    if not any(is_other for _, is_other in mapped):
        return value, False
    return container.rebuild([part for part, _ in mapped]), True


def holds_only_tensors(value: Any) -> bool:
    """Whether a value holds, apart from containers, nothing but tensors and plain values."""
    return all(isinstance(leaf, _VALUES) for leaf in leaves(value))


def hides_tensors(value: Any) -> bool:
    """Whether an object that is not a container has tensors, which could not be split or joined."""
    if isinstance(value, _WHOLE):
        return False
    return _opened(value) is None and next(tensors_in(gc.get_referents(value)), None) is not None


def describe(value: Any) -> str:
    """A value in a few words, for messages."""
    if isinstance(value, PLAIN):
        return reprlib.repr(value)
    container = open_container(value)
    names = [] if container is None else [container.form.format(key) for key in container.parts]
    parts = "" if container is None else f" with {', '.join(names) or 'nothing in it'}"
    return textwrap.shorten(f"a {type(value).__name__}{parts}", 80, placeholder=", ...")
