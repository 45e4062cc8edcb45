"""A call of a network with other weights than its own, which leaves nothing behind in it.

``torch.func.functional_call`` puts the weights into the network and takes them out after the
call. Two threads then meet in it, and activation checkpointing, which runs parts of the network
again in the backward pass, finds the old weights and computes a wrong gradient. So each call
here gets a replica: a copy of the modules that holds the given weights, and shares all else with
the network (buffers and hooks too).
"""

import copy
import gc
import operator
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

_SWAP_LOCK = threading.RLock()

_OPAQUE = (FunctionType, BuiltinFunctionType)
"""What ``copy.deepcopy`` does not look into."""


class ReplicaCall:
    """Calls a network with given weights.

    A network whose modules cannot be replicated (one keeps another in a closure, say) is called
    by ``functional_call``, one thread at a time; code that ``torch.compile`` traces as well.

    Args:
        network: The network.
        names: Names of the weights that every call gives; of tied ones, one.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        self.network = network
        self.names = tuple(names)
        self._shared: dict[int, Any] | None = None
        self._modules: list[nn.Module] = []

    def __call__(
        self, weights: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call the network.

        Args:
            weights: Weight of each of ``names``; the others stay the network's own.
            args: Positional arguments of the network.
            kwargs: Keyword arguments of the network.
        """
        if torch.compiler.is_compiling():
            return functional_call(self.network, dict(weights), args, kwargs)
        return self.bound(weights)(*args, **kwargs)

    def bound(self, weights: Mapping[str, Tensor]) -> Callable[..., Any]:
        """The network with given weights, to be called several times while its mode stays.

        Args:
            weights: Weight of each of ``names``.
        """
        modules = list(self.network.modules())
        if self._shared is None or not _are_same(self._modules, modules):
            self._shared = _shareable(self.network, self.names)
            self._modules = modules
        if self._shared:
            return _replica(self.network, weights, self._shared)

        def swapped(*args: Any, **kwargs: Any) -> Any:
            with _SWAP_LOCK:
                return functional_call(self.network, dict(weights), args, kwargs)

        return swapped

    def __getstate__(self) -> dict[str, Any]:
        # What is shared is known by address, which no copy keeps.
        return {**vars(self), "_shared": None, "_modules": []}


def _are_same(before: Sequence[nn.Module], now: Sequence[nn.Module]) -> bool:
    return len(before) == len(now) and all(map(operator.is_, before, now))


def _replica(
    network: nn.Module, weights: Mapping[str, Tensor], shared: dict[int, Any]
) -> nn.Module:
    memo = dict(shared)
    for name, parameter in network.named_parameters(remove_duplicate=False):
        memo[id(parameter)] = weights.get(name, memo.get(id(parameter), parameter))
    return copy.deepcopy(network, memo)


def _shareable(network: nn.Module, names: Sequence[str]) -> dict[int, Any]:
    """What replicas share with a network, by address; nothing if it cannot be replicated."""
    inside = {id(part) for part in (*network.modules(), *network.parameters())}
    own = dict(network.named_parameters(remove_duplicate=False))
    given = {own[name] for name in names}
    shared: dict[int, Any] = {}
    for module in reversed(list(network.modules())):  # children before their parents
        alone = given.isdisjoint(module.parameters())
        for name, value in vars(module).items():
            reached, opaquely = _reaches(value, inside)
            if opaquely:
                return {}
            if not reached:
                shared[id(value)] = value
            elif name not in ("_parameters", "_modules"):
                alone = False
        if alone and all(id(child) in shared for child in module.children()):
            shared[id(module)] = module
    return shared if _takes_weights(network, names, shared) else {}


def _takes_weights(network: nn.Module, names: Sequence[str], shared: dict[int, Any]) -> bool:
    """Whether a replica holds what it is given, which a module's own ``__deepcopy__`` may not."""
    own = dict(network.named_parameters(remove_duplicate=False))
    weights = {name: torch.empty_like(own[name], device="meta") for name in names}
    try:
        replica = _replica(network, weights, shared)
    except (TypeError, RuntimeError, AttributeError):
        return False
    held = dict(replica.named_parameters(remove_duplicate=False))
    return all(held.get(name) is weight for name, weight in weights.items())


def _reaches(value: Any, inside: set[int]) -> tuple[bool, bool]:
    """Whether a value leads to parts of the network, and whether through what is not copied."""
    reached = False
    seen: set[int] = set()
    waiting = [(value, False)]
    while waiting:
        item, opaque = waiting.pop()
        if id(item) in inside:
            if opaque:
                return True, True
            reached = True
        if id(item) in seen or id(item) in inside or isinstance(item, (type, ModuleType, Tensor)):
            continue
        seen.add(id(item))
        opaque = opaque or isinstance(item, _OPAQUE)
        waiting += [(part, opaque) for part in _parts(item)]
    return reached, False


def _parts(item: Any) -> Iterator[Any]:
    if isinstance(item, FunctionType):  # without its globals, which lead everywhere
        yield from item.__closure__ or ()
        yield from item.__defaults__ or ()
        yield from (item.__kwdefaults__ or {}).values()
        yield from vars(item).values()
    else:
        yield from gc.get_referents(item)
