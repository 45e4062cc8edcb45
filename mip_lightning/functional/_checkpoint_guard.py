"""A guard against activation checkpoints that would run with other weights than the forward pass.

``functional_call`` puts weights into a network for the time of a call. A checkpoint runs parts of
the network again in the backward pass, without them, and its gradient would be wrong in silence.
"""

from typing import Any

from torch import nn

# Torch tells by no public name whether a backward pass is under way. `test_a_checkpoint_in_a_
# swapped_network_is_refused` tells if this one is gone.
from torch._C import _current_graph_task_id

from mip_lightning.errors import UsageError


class _Guard:
    """A hook before the forward of a module. Copies of it, in copies of the network, do nothing."""

    def __init__(self, is_on: bool = False) -> None:
        self._is_on = is_on

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._is_on and _current_graph_task_id() >= 0:
            raise UsageError(
                f"{type(module).__name__} runs again in the backward pass, as activation"
                " checkpointing does, and its network keeps references to its own modules (in a"
                " closure, a weak reference or a registry), so that the predicted weights are gone:"
                " leave the one or the other out"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Guard":
        return _Guard()

    def __getstate__(self) -> dict[str, Any]:
        return {"_is_on": False}


def guard_checkpoints(network: nn.Module) -> None:
    """From now on, refuse calls of a network's modules during a backward pass.

    Args:
        network: The network.
    """
    for module in network.modules():
        hooks = module._forward_pre_hooks.values()
        if not any(isinstance(hook, _Guard) and hook._is_on for hook in hooks):
            module.register_forward_pre_hook(_Guard(is_on=True))
