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
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from mip_lightning.errors import UsageError
from mip_lightning.functional._checkpoint_guard import guard_checkpoints

_SWAP_LOCK = threading.RLock()

_is_watched: ContextVar[bool] = ContextVar("is_watched", default=True)
"""Whether this thread's uses of weights count."""

_VIEWS = ("T", "mT", "H", "mH", "data", "real", "imag")
"""Attributes of a tensor that lead to its numbers, as its size and type do not."""

_MAPPINGS = frozenset((dict, OrderedDict))
_SEQUENCES = frozenset((list, tuple, set))

WATCHED_CALLS = 2
"""First calls in which it is watched which weights are used: a registry may be filled in one."""

_OPAQUE = (FunctionType, BuiltinFunctionType)
"""What ``copy.deepcopy`` does not look into."""


class ReplicaCall:
    """Calls a network with given weights.

    A network whose modules cannot be replicated (one keeps another in a closure or a weak
    reference, say) is called by ``functional_call``, one thread at a time; code that
    ``torch.compile`` traces as well. What a network is given between calls (an attribute, a hook)
    is looked at before the next one. References that no look finds, such as a registry of the
    module's file, show in the first calls: there it is watched which weights are used.

    Args:
        network: The network.
        names: Names of the weights that every call gives; of tied ones, one.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        self.network = network
        self.names = tuple(names)
        self._forget()

    def _forget(self) -> None:
        self._shared: dict[int, Any] | None = None
        self._known: dict[int, Any] = {}
        self._last: list[Any] = []  # what was held at the last look, to compare quickly
        self._added: dict[int, Any] = {}  # of that, what was not there at the first look
        self._swaps = False
        self._to_watch = WATCHED_CALLS

    def __call__(
        self, weights: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call the network.

        Args:
            weights: Weight of each of ``names``; the others stay the network's own.
            args: Positional arguments of the network.
            kwargs: Keyword arguments of the network.

        Raises:
            UsageError: If the network uses a weight by a reference of its own, in whose place no
                other can be put.
        """
        if torch.compiler.is_compiling():
            return functional_call(self.network, dict(weights), args, kwargs)
        return self.bound(weights)(*args, **kwargs)

    def bound(self, weights: Mapping[str, Tensor]) -> Callable[..., Any]:
        """The network with given weights, to be called several times while its mode stays.

        Args:
            weights: Weight of each of ``names``.
        """
        held: list[Any] = []
        network: nn.Module | None = None

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal held, network
            now = _held(self.network)
            if network is None or self._swaps or not _are_same(held, now):
                held, network = now, self._replica_of(now, weights)
            if network is not None:
                found = self._watched(network, weights, args, kwargs)
                if not self._swaps:
                    return found
                network = None
            return self._swapped(weights, args, kwargs)

        return call

    def _replica_of(self, held: Sequence[Any], weights: Mapping[str, Tensor]) -> nn.Module | None:
        """A replica with given weights; ``None`` if the network cannot be replicated."""
        if self._swaps:
            return None
        if self._shared is not None and _are_same(self._last, held):
            return _replica(self.network, weights, self._shared | self._added)
        added = [value for value in held if id(value) not in self._known]
        inside = _inside(self.network)
        if self._shared is None or any(_leads_inside(value, inside) for value in added):
            self._forget()
            self._shared = _shareable(self.network, self.names)
            self._swaps = not self._shared
            self._known = {id(value): value for value in held if not _is_computed(value)}
            added = []
        # Computed tensors are not kept, for their graph would live as long.
        self._last = [None if _is_computed(value) else value for value in held]
        self._added = {id(value): value for value in added if not _is_computed(value)}
        if self._swaps:
            return None
        return _replica(self.network, weights, self._shared | {id(v): v for v in added})

    def _watched(
        self,
        network: nn.Module,
        weights: Mapping[str, Tensor],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Call a replica; if it uses weights of the network itself, there will be none again."""
        if not self._to_watch or _is_compiled(self.network):
            return network(*args, **kwargs)
        self._to_watch -= 1
        with _Watch(self.network, weights) as watch:
            found = network(*args, **kwargs)
        if watch.used is not None:
            self._swaps = True
            self._to_watch = WATCHED_CALLS
            rank_zero_info(
                f"{type(self.network).__name__} finds {watch.used} by a reference of its own, so"
                " it is called by functional_call, one thread at a time"
            )
        return found

    def _swapped(
        self, weights: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call the network itself with given weights in the places of its own."""
        is_compiled = _is_compiled(self.network)
        if torch.is_grad_enabled() and not is_compiled:
            guard_checkpoints(self.network)
        watch = _Watch(self.network, weights)
        watches = self._to_watch and not is_compiled
        with _SWAP_LOCK, watch if watches else nullcontext():
            found = functional_call(self.network, dict(weights), args, kwargs)
        self._to_watch = max(0, self._to_watch - 1)
        if watch.used is not None:
            raise UsageError(
                f"{type(self.network).__name__} keeps the parameter {watch.used} by a reference of"
                " its own, in whose place no predicted weight can be put: look it up in its module"
            )
        return found

    def __getstate__(self) -> dict[str, Any]:
        # What is shared is known by address, which no copy keeps.
        return {"network": self.network, "names": self.names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


@contextmanager
def unwatched() -> Iterator[None]:
    """While it lasts, weights of networks may be used: to predict others from them."""
    token = _is_watched.set(False)
    try:
        yield
    finally:
        _is_watched.reset(token)


class _Watch(TorchFunctionMode):
    """Notices that a network's own weights are used, while others are in their places.

    Args:
        network: The network.
        weights: What is in the places of its own, by name.

    Attributes:
        used: Name of one that was used; ``None`` for none.
    """

    def __init__(self, network: nn.Module, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        own = dict(network.named_parameters(remove_duplicate=False))
        self._names = {id(own[n]): n for n, weight in weights.items() if weight is not own[n]}
        self.used: str | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Look at the arguments of a function of torch, and call it."""
        kwargs = kwargs or {}
        is_getter = getattr(func, "__name__", "") == "__get__"
        of = getattr(getattr(func, "__self__", None), "__name__", "")
        is_use = not is_getter or of in _VIEWS
        if is_use and _is_watched.get():
            for value in (*args, *kwargs.values()):
                for part in value if isinstance(value, (list, tuple)) else (value,):
                    self.used = self._names.get(id(part), self.used)
        return func(*args, **kwargs)


def _held(network: nn.Module) -> list[Any]:
    """What the modules of a network hold, and what is in their lists and mappings (of hooks)."""
    modules, seen = [network], {network}
    for module in modules:  # it grows; ``network.modules()`` takes several times as long
        for child in module._modules.values():
            if child is not None and child not in seen:
                seen.add(child)
                modules.append(child)
    held: list[Any] = []
    for module in modules:
        held += vars(module).values()
    for value in [value for value in held if value.__class__ in _MAPPINGS and value]:
        held += value.values()
    for value in [value for value in held if value.__class__ in _SEQUENCES]:
        held += value
    return held


def _is_computed(value: Any) -> bool:
    return isinstance(value, Tensor) and value.grad_fn is not None


def _leads_inside(value: Any, inside: set[int]) -> bool:
    """Whether a value that is new in a network leads to parts of it, or is one."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return False
    return isinstance(value, (nn.Module, nn.Parameter)) or _reaches(value, inside)[0]


def _inside(network: nn.Module) -> set[int]:
    return {id(part) for part in (*network.modules(), *network.parameters())}


def _is_compiled(network: nn.Module) -> bool:
    """Whether parts of a network are compiled: those cannot be watched, nor take hooks."""
    return any(
        isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod")
        for module in network.modules()
    )


def _are_same(before: Sequence[Any], now: Sequence[Any]) -> bool:
    return len(before) == len(now) and all(map(operator.is_, before, now))


def _replica(network: nn.Module, weights: Mapping[str, Tensor], memo: dict[int, Any]) -> nn.Module:
    """A replica with given weights.

    Args:
        network: The network.
        weights: The weights by name.
        memo: What the two share, by address; it is written to.
    """
    for name, parameter in network.named_parameters(remove_duplicate=False):
        memo[id(parameter)] = weights.get(name, memo.get(id(parameter), parameter))
    return copy.deepcopy(network, memo)


def _shareable(network: nn.Module, names: Sequence[str]) -> dict[int, Any]:
    """What replicas share with a network, by address; nothing if it cannot be replicated."""
    inside = _inside(network)
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
        replica = _replica(network, weights, dict(shared))
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
        # A copy of one refers to what it did. Recurrent layers have such of their weights, unused.
        if isinstance(item, weakref.ReferenceType) and isinstance(item(), nn.Module):
            waiting.append((item(), True))
        if isinstance(item, weakref.ProxyTypes):  # which do not tell to what
            return True, True
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
