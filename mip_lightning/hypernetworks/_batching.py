"""K draws in a batch: inputs split into K groups, outputs joined again."""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mip_lightning.errors import UsageError
from mip_lightning.hypernetworks.draws import OUTPUT, BatchDims, PerDraw
from mip_lightning.utilities._batch_types import BatchType, batch_type
from mip_lightning.utilities.nested import (
    PLAIN,
    Arguments,
    describe,
    hides_tensors,
    map_leaves,
    open_container,
)


class _Leaf(NamedTuple):
    """A tensor, or an object that holds samples in its own way, among the arguments.

    Attributes:
        value: Shape ``(K, ...)`` with the groups of samples first; what all share, as it is; or a
            list of K objects.
        is_shared: Whether all draws get it whole.
    """

    value: Any
    is_shared: bool


class SplitArguments:
    """The arguments of a call, with the samples in K groups.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
        num_draws: K.
        dims: Where the samples lie.

    Attributes:
        num_samples: B; ``None`` where no argument tells it.

    Raises:
        UsageError: If K does not divide the samples, an argument may or may not hold them, or an
            object that is not a container has tensors.
    """

    def __init__(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], num_draws: int, dims: BatchDims
    ) -> None:
        self._num_draws = num_draws
        self._dims = dims
        self._args, self._kwargs = args, kwargs
        self.num_samples: int | None = None
        self._first: tuple[str, tuple[int, ...]] = ("", ())
        self._leaves: list[_Leaf] = []
        self._map(self._add)

    @property
    def per_draw(self) -> int | None:
        """Number of samples of each draw; ``None`` where no argument tells it."""
        return None if self.num_samples is None else self.num_samples // self._num_draws

    @property
    def for_vmap(self) -> tuple[list[Tensor], list[int | None]]:
        """The tensors, and the dimension of each that ``vmap`` goes along."""
        return [leaf.value for leaf in self._leaves], [
            None if leaf.is_shared else 0 for leaf in self._leaves
        ]

    @property
    def are_tensors(self) -> bool:
        """Whether ``vmap`` can take them."""
        return all(isinstance(leaf.value, Tensor) for leaf in self._leaves)

    def holding(self, values: Iterator[Any]) -> Arguments:
        """The arguments with other values in the places of these tensors and objects.

        Args:
            values: As many of them.
        """

        def replace(name: str, leaf: Any) -> Any:
            return next(values) if isinstance(leaf, Tensor) or batch_type(leaf) else leaf

        return self._map(replace)

    def of_draw(self, draw: int) -> Arguments:
        """The arguments of one draw."""
        own = (leaf.value if leaf.is_shared else leaf.value[draw] for leaf in self._leaves)
        return self.holding(iter(own))

    def _map(self, function: Callable[[str, Any], Any]) -> Arguments:
        mapped = [
            map_leaves(value, function, name)
            for name, value in self._dims.named(self._args, self._kwargs)
        ]
        count = len(self._args)
        return Arguments(
            tuple(mapped[:count]), dict(zip(self._kwargs, mapped[count:], strict=True))
        )

    def _add(self, name: str, leaf: Any) -> Any:
        kind = batch_type(leaf)
        if kind is not None:
            self._add_object(name, leaf, kind)
        elif isinstance(leaf, Tensor):
            self._leaves.append(self._split(name, leaf))
        elif hides_tensors(leaf):
            raise UsageError(
                f"gamma holds {self._num_draws} draws, and {name} is a {type(leaf).__name__}, whose"
                " tensors cannot be split between them: give tensors themselves, or in a list,"
                " tuple, mapping or dataclass"
            )
        return leaf

    def _add_object(self, name: str, value: Any, kind: BatchType) -> None:
        if self._dims.of(name) == (None, True):
            self._leaves.append(_Leaf(value, is_shared=True))
            return
        size = kind.size(value)
        self._check_size(name, size, (size,))
        per_draw = size // self._num_draws
        groups = [
            kind.select(value, range(start, start + per_draw))
            for start in range(0, size, max(per_draw, 1))
        ]
        self._leaves.append(_Leaf(groups, is_shared=False))

    def _split(self, name: str, tensor: Tensor) -> _Leaf:
        dim, is_said = self._dims.of(name)
        if dim is None:
            return _Leaf(tensor, is_shared=True)
        shape = tuple(tensor.shape)
        if not -tensor.ndim <= dim < tensor.ndim:
            if is_said or tensor.ndim:
                raise UsageError(
                    f"{name} has shape {shape}, and draws.batch_dims says that dimension {dim} of"
                    " it holds the samples: name another one, or None where all share it"
                )
            return _Leaf(tensor, is_shared=True)
        dim = dim % tensor.ndim
        size = shape[dim]
        if not is_said and self.num_samples is not None:
            if size == 1 != self.num_samples:  # such tensors are made to be broadcast
                return _Leaf(tensor, is_shared=True)
            self._check_length(name, shape, dim)
        self._check_size(name, size, shape)
        groups = tensor.unflatten(dim, (self._num_draws, size // self._num_draws))
        return _Leaf(groups.movedim(dim, 0), is_shared=False)

    def _check_length(self, name: str, shape: tuple[int, ...], dim: int) -> None:
        """Refuse a tensor of which it cannot be told whether it holds samples."""
        if self._num_draws == 1:
            return
        first, its_shape = self._first
        way_out = (
            f"say whether it does (draws.batch_dims={{{name!r}: {dim}}}) or all samples share it"
            f" ({{{name!r}: None}})"
        )
        if shape[dim] != self.num_samples:
            raise UsageError(
                f"{name} has shape {shape}, and {first} of shape {its_shape} holds"
                f" {self.num_samples} samples for {self._num_draws} draws: {way_out}"
            )
        # A mask of positions is square, and here as long as the batch is large.
        if len(shape) == 2 and shape[0] == shape[1] and its_shape[1:2] == shape[1:]:
            raise UsageError(
                f"{name} has shape {shape}, and {first} has shape {its_shape}, so that it may hold"
                f" samples or positions: {way_out}"
            )

    def _check_size(self, name: str, size: int, shape: tuple[int, ...]) -> None:
        """Refuse what K does not divide."""
        if size % self._num_draws:
            raise UsageError(
                f"gamma holds {self._num_draws} draws, which do not divide {name} of shape {shape}:"
                " give a batch that K divides (drop_last=True leaves out the last, smaller one)"
            )
        if self.num_samples is None:
            self.num_samples = size
            self._first = (name, shape)


def join_draws(
    outputs: Sequence[Any], dims: BatchDims, per_draw: int | None, name: str = OUTPUT
) -> Any:
    """Make one output of those of K draws.

    Tensors are concatenated along the dimension of their samples; those without dimensions become
    one of shape ``(K,)``. Whatever else there is must be the same for all draws; but objects within
    an output that cannot be joined are kept, as a ``PerDraw``.

    Args:
        outputs: What the primary returned for each draw, of equal structure.
        dims: Where the samples lie.
        per_draw: Number of samples of each draw; ``None`` where nothing tells it.
        name: What is joined, for messages.

    Raises:
        UsageError: If they cannot be joined, or a tensor does not hold the samples.
    """
    first = outputs[0]
    if all(isinstance(output, Tensor) for output in outputs):
        return _join_tensors(outputs, dims, per_draw, name)
    for other in outputs[1:]:
        if not _are_alike(first, other):
            if type(first) is type(other) and _is_object(first) and name != OUTPUT:
                return PerDraw(outputs)
            raise UsageError(
                f"{name} is {describe(first)} for one draw and {describe(other)} for another, and"
                " they cannot be joined: return tensors, in lists, tuples, mappings or dataclasses,"
                " or give one gamma"
            )
    kind = batch_type(first)
    if kind is not None:
        return kind.join(outputs)
    container = open_container(first)
    if container is None:
        return first
    parts = [opened.parts for opened in map(open_container, outputs) if opened is not None]
    joined = [
        join_draws([own[key] for own in parts], dims, per_draw, name + container.form.format(key))
        for key in container.parts
    ]
    are_same = all(map(operator.is_, joined, container.parts.values()))
    return first if are_same else container.rebuild(joined)


def join_vmapped(tensor: Tensor, dims: BatchDims, per_draw: int | None, name: str) -> Tensor:
    """Join what ``vmap`` returned, as ``join_draws`` does.

    Args:
        tensor: Shape ``(K, ...)``.
        dims: Where the samples lie.
        per_draw: Number of samples of each draw; ``None`` where nothing tells it.
        name: What is joined.

    Raises:
        UsageError: If the tensor does not hold the samples.
    """
    dim = _dim_of(tensor[0], dims, per_draw, name)
    return tensor if dim is None else tensor.movedim(0, dim).flatten(dim, dim + 1)


def _join_tensors(
    tensors: Sequence[Tensor], dims: BatchDims, per_draw: int | None, name: str
) -> Tensor:
    first = tensors[0]
    dim = _dim_of(first, dims, per_draw, name)
    for tensor in tensors:
        others = [list(t.shape) for t in (first, tensor)]
        if dim is not None and tensor.ndim == first.ndim:
            others = [shape[:dim] + shape[dim + 1 :] for shape in others]
        if others[0] != others[1]:
            raise UsageError(
                f"{name} has shape {tuple(first.shape)} for one draw and {tuple(tensor.shape)} for"
                " another: return tensors that differ in their number of samples only, or give"
                " one gamma"
            )
        _dim_of(tensor, dims, per_draw, name)
    return torch.stack(list(tensors)) if dim is None else torch.cat(list(tensors), dim)


def _dim_of(tensor: Tensor, dims: BatchDims, per_draw: int | None, name: str) -> int | None:
    """The dimension along which a draw's output holds its samples; ``None`` if it is one of all."""
    dim, is_said = dims.of(name)
    if dim is None or tensor.ndim == 0:
        return None
    is_there = -tensor.ndim <= dim < tensor.ndim
    if not is_there or (not is_said and per_draw is not None and tensor.shape[dim] != per_draw):
        raise UsageError(
            f"{name} has shape {tuple(tensor.shape)} for a draw of {per_draw} samples, which are"
            f" not along dimension {dim}: say where they are, as in"
            f" draws.batch_dims={{{name!r}: 1}}, or that it is one of all samples"
            f" ({{{name!r}: None}})"
        )
    return dim % tensor.ndim


def _is_object(value: Any) -> bool:
    """Whether it is neither a container nor a plain value."""
    return open_container(value) is None and not isinstance(value, PLAIN)


def _are_alike(first: Any, other: Any) -> bool:
    """Whether two outputs are containers of the same parts, or equal objects without tensors."""
    if type(first) is not type(other):
        return False
    if batch_type(first) is not None:
        return True
    if hides_tensors(first):
        return False
    container, its = open_container(first), open_container(other)
    if container is not None and its is not None:
        return container.parts.keys() == its.parts.keys()
    try:
        return first is other or bool(first == other)
    except (TypeError, ValueError, RuntimeError):  # two arrays, say
        return False
