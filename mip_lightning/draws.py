"""K draws in a batch: inputs split into K groups, outputs joined again."""

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
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

# Private by name, and yet where libraries register their containers (torch.export asks them to);
# torch has no public way to open these. `test_outputs_of_draws_are_joined_whatever_holds_them`
# tells if it is gone; without it, such containers are opened as the mappings that most of them are.
from torch.utils._pytree import tree_flatten, tree_unflatten

from mip_lightning.errors import UsageError

Inputs: TypeAlias = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""What the primary is called with: one tensor, positional or keyword arguments."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes, range, torch.dtype, torch.device)
"""Values that hold no tensor and never change."""

_VALUES = (Tensor, *_PLAIN)

_CODE = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, nn.Module)
"""Objects that may hold tensors, none of them a part of a batch."""

_WHOLE = (Tensor, *_PLAIN, *_CODE)
"""What is not a container."""


def written(gamma: Float[Tensor, " D"], between: str = "_") -> str:
    """A gamma as names of files and titles tell it: ``0.3``, or ``0.3_0.5``.

    Args:
        gamma: One draw.
        between: What stands between its dimensions.
    """
    return between.join(f"{value:.6g}" for value in gamma.tolist())


def as_arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the primary."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


class _Container(NamedTuple):
    """A container.

    Attributes:
        form: How a key is written behind its name, as in ``[0]`` or ``.loss``.
        parts: What it holds, by key.
        rebuild: Makes another one of other parts.
    """

    form: str
    parts: dict[Any, Any]
    rebuild: Callable[[list[Any]], Any]


def _opened(value: Any) -> _Container | None:
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
        return _Container(".{}", held, functools.partial(_with_attributes, value, list(held)))
    if is_collection and not is_dataclass:
        parts = list(value.values() if isinstance(value, Mapping) else value)
        return _of_items(value, parts, functools.partial(_with_items, value))
    return None


def _of_items(value: Any, parts: list[Any], rebuild: Callable[[list[Any]], Any]) -> _Container:
    if isinstance(value, Mapping):
        return _Container("[{!r}]", dict(zip(value, parts, strict=True)), rebuild)
    fields = getattr(value, "_fields", ())  # of a named tuple
    if fields:
        return _Container(".{}", dict(zip(fields, parts, strict=True)), rebuild)
    return _Container("[{}]", dict(enumerate(parts)), rebuild)


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


def _leaves(value: Any) -> Iterator[Any]:
    """What a value holds that is not a container, in order, and packed sequences as they are."""
    if isinstance(value, Tensor):  # most are
        yield value
        return
    container = None if isinstance(value, PackedSequence) else _opened(value)
    if container is None:
        yield value
    else:
        for part in container.parts.values():
            yield from _leaves(part)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, in containers too, in order."""
    for leaf in _leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, PackedSequence):
            yield from tensors_in(tuple(leaf))


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Put something in the place of each tensor; containers without tensors stay the same object.

    Args:
        value: A tensor, a container, or anything else, which stays.
        function: Called with each tensor, in the order of ``tensors_in``.
    """
    return _mapped(value, function)[0]


def _mapped(value: Any, function: Callable[[Tensor], Any]) -> tuple[Any, bool]:
    """What ``map_tensors`` gives, and whether there was a tensor."""
    if isinstance(value, Tensor):
        return function(value), True
    container = _opened(value)
    mapped = [] if container is None else [_mapped(p, function) for p in container.parts.values()]
    if container is None or not any(had_tensors for _, had_tensors in mapped):
        return value, False
    return container.rebuild([part for part, _ in mapped]), True


def split_draws(value: Any, num_draws: int) -> Any:
    """View each tensor ``(B, ...)`` as ``(K, B / K, ...)``; anything else goes to each group.

    Raises:
        UsageError: If K does not divide a tensor, or an object that is not a container has tensors.
    """
    for leaf in _leaves(value):
        if _hides_tensors(leaf):
            raise UsageError(
                f"gamma holds {num_draws} draws, and an input is a {type(leaf).__name__}, whose"
                " tensors cannot be split between them: give tensors themselves, or in a list,"
                " tuple, mapping or dataclass"
            )

    def split(tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or len(tensor) % num_draws:
            raise UsageError(
                f"gamma holds {num_draws} draws, which do not divide an input of shape"
                f" {tuple(tensor.shape)}: give a batch that K divides (drop_last=True leaves out"
                " the last, smaller one)"
            )
        return tensor.view(num_draws, len(tensor) // num_draws, *tensor.shape[1:])

    return map_tensors(value, split)


def pick_draw(value: Any, draw: int) -> Any:
    """The group of one draw, of what ``split_draws`` gave."""
    return map_tensors(value, lambda tensor: tensor[draw])


def join_draws(outputs: Sequence[Any], name: str = "output") -> Any:
    """Make one output of those of K draws.

    Tensors are concatenated along their first dimension; those without dimensions become one of
    shape ``(K,)``. Whatever else there is must be the same for all draws.

    Args:
        outputs: What the primary returned for each draw, of equal structure.
        name: What is joined, for messages.

    Raises:
        UsageError: If they cannot be joined.
    """
    first = outputs[0]
    if all(isinstance(output, Tensor) for output in outputs):
        return _joined_tensors(outputs, name)
    for other in outputs[1:]:
        if not _are_alike(first, other):
            raise UsageError(
                f"{name} is {_told(first)} for one draw and {_told(other)} for another, and they"
                " cannot be joined: return tensors, in lists, tuples, mappings or dataclasses, or"
                " give one gamma"
            )
    container = _opened(first)
    if container is None:
        return first
    parts = [opened.parts for opened in map(_opened, outputs) if opened is not None]
    joined = [
        join_draws([own[key] for own in parts], name + container.form.format(key))
        for key in container.parts
    ]
    return first if next(tensors_in(first), None) is None else container.rebuild(joined)


def holds_only_tensors(value: Any) -> bool:
    """Whether a value holds, beside containers, nothing but tensors and plain values."""
    return all(isinstance(leaf, _VALUES) for leaf in _leaves(value))


def _joined_tensors(tensors: Sequence[Tensor], name: str) -> Tensor:
    first = tensors[0]
    for tensor in tensors:
        if tensor.ndim != first.ndim or tensor.shape[1:] != first.shape[1:]:
            raise UsageError(
                f"{name} has shape {tuple(first.shape)} for one draw and {tuple(tensor.shape)} for"
                " another: return tensors that differ in the first dimension only, or give one"
                " gamma"
            )
    return torch.cat(list(tensors)) if first.ndim else torch.stack(list(tensors))


def _are_alike(first: Any, other: Any) -> bool:
    """Whether two outputs are containers of the same parts, or equal objects without tensors."""
    if type(first) is not type(other) or _hides_tensors(first):
        return False
    container, its = _opened(first), _opened(other)
    if container is not None and its is not None:
        return container.parts.keys() == its.parts.keys()
    try:
        return first is other or bool(first == other)
    except (TypeError, ValueError, RuntimeError):  # two arrays, say
        return False


def _hides_tensors(value: Any) -> bool:
    """Whether an object that is not a container has tensors, which could not be split or joined.

    The tensors of a packed sequence hold samples in no dimension.
    """
    if isinstance(value, _WHOLE):
        return False
    if isinstance(value, PackedSequence):
        return True
    return _opened(value) is None and next(tensors_in(gc.get_referents(value)), None) is not None


def _told(value: Any) -> str:
    if isinstance(value, _PLAIN):
        return reprlib.repr(value)
    container = _opened(value)
    names = [] if container is None else [container.form.format(key) for key in container.parts]
    parts = "" if container is None else f" with {', '.join(names) or 'nothing in it'}"
    return textwrap.shorten(f"a {type(value).__name__}{parts}", 80, placeholder=", ...")
