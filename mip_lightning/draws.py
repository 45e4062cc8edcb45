"""K draws in a batch: inputs split into K groups, outputs joined again."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from mip_lightning.errors import UsageError

Inputs: TypeAlias = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""What the primary is called with: one tensor, positional or keyword arguments."""


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


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, in containers too, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for part in value:
            yield from tensors_in(part)


def split_draws(value: Any, num_draws: int) -> Any:
    """View each tensor ``(B, ...)`` as ``(K, B / K, ...)``; anything else goes to each group."""

    def split(tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or len(tensor) % num_draws:
            raise UsageError(
                f"gamma holds {num_draws} draws, which do not divide an input of shape"
                f" {tuple(tensor.shape)}: give a batch that K divides (drop_last=True leaves out"
                " the last, smaller one)"
            )
        return tensor.view(num_draws, -1, *tensor.shape[1:])

    return apply_to_collection(value, Tensor, split)


def draws_dimension(value: Any) -> int | None:
    """What ``vmap`` is told of an argument: a tensor, or a container of tensors, is split."""
    return None if next(iter(tensors_in(value)), None) is None else 0


def pick_draw(value: Any, draw: int) -> Any:
    """The group of one draw, of what ``split_draws`` gave."""
    return apply_to_collection(value, Tensor, lambda tensor: tensor[draw])


def join_draws(outputs: Sequence[Any]) -> Any:
    """Concatenate the tensors of equal structures along their first dimension."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(list(outputs)) if first.ndim else torch.stack(list(outputs))
    if isinstance(first, Mapping):
        return {key: join_draws([output[key] for output in outputs]) for key in first}
    if isinstance(first, (tuple, list)):
        joined = [join_draws(values) for values in zip(*outputs, strict=True)]
        return type(first)(*joined) if hasattr(first, "_fields") else type(first)(joined)
    return first
