"""K draws in a batch: inputs split into K groups, outputs joined again."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mip_lightning.errors import UsageError
from mip_lightning.utilities.nested import (
    describe,
    hides_tensors,
    leaves,
    map_tensors,
    open_container,
    tensors_in,
)


def split_draws(value: Any, num_draws: int) -> Any:
    """View each tensor ``(B, ...)`` as ``(K, B / K, ...)``; anything else goes to each group.

    Raises:
        UsageError: If K does not divide a tensor, or an object that is not a container has tensors.
    """
    for leaf in leaves(value):
        if hides_tensors(leaf):
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
                f"{name} is {describe(first)} for one draw and {describe(other)} for another, and"
                " they cannot be joined: return tensors, in lists, tuples, mappings or dataclasses,"
                " or give one gamma"
            )
    container = open_container(first)
    if container is None:
        return first
    parts = [opened.parts for opened in map(open_container, outputs) if opened is not None]
    joined = [
        join_draws([own[key] for own in parts], name + container.form.format(key))
        for key in container.parts
    ]
    return first if next(tensors_in(first), None) is None else container.rebuild(joined)


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
    if type(first) is not type(other) or hides_tensors(first):
        return False
    container, its = open_container(first), open_container(other)
    if container is not None and its is not None:
        return container.parts.keys() == its.parts.keys()
    try:
        return first is other or bool(first == other)
    except (TypeError, ValueError, RuntimeError):  # two arrays, say
        return False
