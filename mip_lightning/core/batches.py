"""The samples of a batch: how many there are, and some of them."""

import copy
from collections.abc import MutableMapping, Sequence, Sized
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from mip_lightning.errors import UsageError
from mip_lightning.utilities._batch_types import batch_type
from mip_lightning.utilities.nested import leaves, tensors_in

DrawsPerBatch: TypeAlias = int | Literal["one_per_sample"]
"""K, or one gamma a sample (K = B)."""


def check_counts(
    draws_per_batch: DrawsPerBatch, validation_grid_size: int, test_grid_size: int
) -> None:
    """Refuse numbers of gamma below 1.

    Raises:
        UsageError: If one is.
    """
    if draws_per_batch != "one_per_sample" and draws_per_batch < 1:
        raise UsageError(
            f"draws_per_batch={draws_per_batch}: sample 1 or more, or 'one_per_sample'"
        )
    for name, size in (
        ("validation_grid_size", validation_grid_size),
        ("test_grid_size", test_grid_size),
    ):
        if size < 1:
            raise UsageError(f"{name}={size}: sweep over 1 gamma or more")


def batch_size(batch: Any) -> int:
    """Number of samples in a batch.

    The length of its first tensor; or the number of graphs, of packed sequences, of samples of a
    tensordict; of an object that is no container, that of the first tensor among its attributes;
    where there is no tensor at all, the number of items.

    Raises:
        UsageError: If it cannot be told.
    """
    for leaf in leaves(batch):
        kind = batch_type(leaf)
        if kind is not None:
            return kind.size(leaf)
        for tensor in tensors_in([leaf, getattr(leaf, "__dict__", {})]):
            if tensor.ndim:
                return len(tensor)
    if isinstance(batch, Sized) and not isinstance(batch, (str, bytes)):
        return len(batch)
    raise UsageError(
        f"a batch of type {type(batch).__name__} holds no tensor to count samples by: give its"
        " class a __len__"
    )


def take_samples(value: Any, which: slice | Sequence[int], size: int) -> Any:
    """Some samples of a batch: of tensors, arrays, and lists with an item for each sample.

    Args:
        value: A batch, or a part of one.
        which: The samples, by a slice or their indices.
        size: Number of samples in the batch.
    """
    indices = range(size)[which] if isinstance(which, slice) else which
    kind = batch_type(value)
    if kind is not None:
        return kind.select(value, indices)
    if isinstance(value, (Tensor, np.ndarray)):
        return value[which] if value.ndim and len(value) == size else value
    if isinstance(value, MutableMapping):
        mapping = copy.copy(value)  # of its own type
        mapping.update({key: take_samples(part, which, size) for key, part in value.items()})
        return mapping
    if isinstance(value, (list, tuple)):
        tensors = [part for part in value if isinstance(part, Tensor)]
        is_of_fields = bool(tensors) and all(t.ndim and len(t) == size for t in tensors)
        if len(value) == size and not is_of_fields:
            some = [value[index] for index in indices]
            return some if isinstance(value, list) else type(value)(some)
        parts = [take_samples(part, which, size) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        return replace(value, **{k: take_samples(part, which, size) for k, part in own.items()})
    if not isinstance(value, (str, int, float, type(None))):
        rank_zero_warn(
            f"samples cannot be taken from a {type(value).__name__}: all in it count, those that"
            " ranks repeat too"
        )
    return value
