"""Objects that hold samples in their own way: packed sequences, tensordicts, graph batches.

They cannot be cut along a dimension of their tensors. Each kind tells how many samples it holds,
takes some of them, and joins several objects to one. No library is imported for it.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


class BatchType(NamedTuple):
    """A kind of such objects.

    Attributes:
        matches: Whether an object is one.
        size: Number of samples in it.
        select: Some of its samples, by their indices, as another one.
        join: One of several.
    """

    matches: Callable[[Any], bool]
    size: Callable[[Any], int]
    select: Callable[[Any, Sequence[int]], Any]
    join: Callable[[Sequence[Any]], Any]


def batch_type(value: Any) -> BatchType | None:
    """The kind of an object that holds samples in its own way; ``None`` for anything else."""
    if isinstance(value, (Tensor, str, int, float, type(None), list, dict)):
        return None  # most are
    return next((kind for kind in _TYPES if kind.matches(value)), None)


def _select_packed(packed: PackedSequence, which: Sequence[int]) -> PackedSequence:
    padded, lengths = pad_packed_sequence(packed)
    some = padded[:, list(which)]
    return pack_padded_sequence(some, lengths[list(which)], enforce_sorted=False)


def _join_packed(parts: Sequence[PackedSequence]) -> PackedSequence:
    padded, lengths = zip(*map(pad_packed_sequence, parts), strict=True)
    longest = max(map(len, padded))
    filled = [pad(part, (0, 0) * (part.ndim - 1) + (0, longest - len(part))) for part in padded]
    return pack_padded_sequence(torch.cat(filled, 1), torch.cat(lengths), enforce_sorted=False)


def _is_tensordict(value: Any) -> bool:
    library: Any = sys.modules.get("tensordict")
    return library is not None and bool(library.is_tensor_collection(value))


def _is_graphs(value: Any) -> bool:
    """Whether it is a batch of graphs of torch_geometric."""
    return hasattr(value, "to_data_list") and hasattr(type(value), "from_data_list")


def _select_graphs(graphs: Any, which: Sequence[int]) -> Any:
    each = graphs.to_data_list()
    return type(graphs).from_data_list([each[index] for index in which])


def _join_graphs(parts: Sequence[Any]) -> Any:
    return type(parts[0]).from_data_list([graph for part in parts for graph in part.to_data_list()])


_TYPES = (
    BatchType(
        matches=lambda value: isinstance(value, PackedSequence),
        size=lambda packed: int(packed.batch_sizes[0]),  # on the CPU, always
        select=_select_packed,
        join=_join_packed,
    ),
    BatchType(
        matches=_is_tensordict,
        size=len,
        select=lambda tensors, which: tensors[list(which)],
        join=lambda parts: torch.cat(list(parts)),
    ),
    BatchType(
        matches=_is_graphs,
        size=lambda graphs: int(graphs.num_graphs),
        select=_select_graphs,
        join=_join_graphs,
    ),
)
