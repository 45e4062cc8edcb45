"""What a user chooses of K draws in a batch: where its samples lie, and how the draws are run."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from torch import nn

from mip_lightning.errors import UsageError

RunDraws: TypeAlias = Literal["auto", "vmap", "in_turn"]
"""By ``vmap`` where it can run the primary, else one after another; or the one or the other."""

OUTPUT = "output"
"""The name of what the primary returns."""


@dataclass(frozen=True)
class DrawsConfig:
    """How K draws of gamma share a batch of B samples.

    Each argument of the primary that holds the samples is split into K groups, and the outputs of
    the groups are joined. Where nothing is said, the samples lie along dimension 0; a tensor of
    length 1 there, or without dimensions, is shared by all of them; and a tensor of another length
    is refused, for it may be either.

    Args:
        batch_dims: The dimension that holds the samples; or by name, where they lie elsewhere, and
            ``None`` for what all samples share. A name is that of an argument of the primary's
            ``forward``, or of a part of it (``graph.edge_index``, ``images[1]``), or ``output``
            (``output[1]``, ``output['logits']``), as messages write them.
        run: ``vmap`` for all draws at once, ``in_turn``, or ``auto``: by ``vmap``, and in turn
            where it fails.

    Raises:
        UsageError: If ``run`` is none of them.

    Example::

        DrawsConfig({"src": 1, "mask": None, "output": 1})  # a transformer's (T, B, E)
    """

    batch_dims: int | Mapping[str, int | None] = 0
    run: RunDraws = "auto"

    def __post_init__(self) -> None:
        if self.run not in get_args(RunDraws):
            raise UsageError(f"draws.run={self.run!r}: choose one of {get_args(RunDraws)}")


class PerDraw(tuple[Any, ...]):
    """What K draws returned within an output and cannot be joined (a cache, say), one each."""

    __slots__ = ()


class BatchDim(NamedTuple):
    """Where a tensor holds its samples.

    Attributes:
        dim: The dimension; ``None`` if all samples share the tensor.
        is_said: Whether somebody said so, so that its length there is not looked at.
    """

    dim: int | None
    is_said: bool


class BatchDims:
    """Where the samples lie in the arguments of a network, and in what it returns.

    Args:
        network: The network. Of torch's own layers it is known.
        said: What the user says, as ``DrawsConfig.batch_dims``.

    Raises:
        UsageError: If a name is neither an argument of the network nor ``output``.
    """

    def __init__(self, network: nn.Module, said: int | Mapping[str, int | None]) -> None:
        parameters = inspect.signature(network.forward).parameters.values()
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self._positional = [p.name for p in parameters if p.kind in positional]
        rest = [p.name for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL]
        self._rest = rest[0] if rest else "args"
        self._default = said if isinstance(said, int) else 0
        by_name = {} if isinstance(said, int) else dict(said)
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            _check_names(by_name, [*(p.name for p in parameters), OUTPUT])
        self._said = dict(_of_torch(network)) | by_name
        self.are_said = bool(self._said) or self._default != 0

    def of(self, name: str) -> BatchDim:
        """Where the samples lie in a tensor.

        Args:
            name: Its name, such as ``x``, ``graph.edge_index`` or ``output[0]``.
        """
        part = name
        while part:
            if part in self._said:
                return BatchDim(self._said[part], is_said=True)
            part = part[: max(part.rfind("."), part.rfind("["), 0)]
        return BatchDim(self._default, is_said=False)

    def named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Each argument of a call with its name, the positional ones first."""
        for index, value in enumerate(args):
            over = index - len(self._positional)
            yield (self._positional[index] if over < 0 else f"{self._rest}[{over}]"), value
        yield from kwargs.items()


def _check_names(said: Mapping[str, Any], known: list[str]) -> None:
    for name in said:
        if name.partition(".")[0].partition("[")[0] not in known:
            raise UsageError(
                f"draws.batch_dims names {name!r}, which is no argument of the primary: name one"
                f" of {', '.join(known)}"
            )


def _of_torch(network: nn.Module) -> Mapping[str, int | None]:
    """Where torch's own layers hold their samples, of whatever ``batch_first``."""
    first = 0 if getattr(network, "batch_first", _of_layers(network)) else 1
    shared = dict.fromkeys(("mask", "attn_mask", "src_mask", "tgt_mask", "memory_mask"), None)
    if isinstance(network, nn.RNNBase):  # the last states are (layers, B, H) in either case
        return {"input": first, "hx": 1, "output[0]": first, "output[1]": 1}
    if isinstance(network, nn.MultiheadAttention):
        return shared | dict.fromkeys(("query", "key", "value", "output[0]"), first)
    if isinstance(network, _TRANSFORMERS):
        return shared | dict.fromkeys(("src", "tgt", "memory", OUTPUT), first)
    return {}


_TRANSFORMERS = (
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)


def _of_layers(network: nn.Module) -> bool:
    """Whether a stack of layers takes samples first, as those in it do."""
    found = (getattr(module, "batch_first", None) for module in network.modules())
    return next((first for first in found if first is not None), True)
