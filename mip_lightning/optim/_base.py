"""What the factored optimizers share: who is updated by blocks, what torch is told of the rest."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from mip_lightning.errors import UsageError
from mip_lightning.functional.linear import keep_in_factors
from mip_lightning.optim._update import Update, step, update_by_adam, update_by_sgd

Moments: TypeAlias = Literal["float32", "bfloat16"]
"""How moments of the parameters with a factored gradient are kept."""

UPDATES: dict[type[Optimizer], Update] = {
    torch.optim.Adam: update_by_adam,
    torch.optim.AdamW: update_by_adam,
    torch.optim.SGD: update_by_sgd,
}
"""How one parameter is updated by blocks, by the optimizer of torch that does the same."""


class FactoredOptimizer(Optimizer):
    """What these optimizers do otherwise than torch's.

    Attributes:
        torchs: The optimizer of torch that does the same.
    """

    torchs: ClassVar[type[Optimizer]]

    def _complete(self, moments: str) -> None:
        """Take up the choice of moments; adapt a loaded state."""
        self.defaults["moments"] = moments
        for group in self.param_groups:
            check_moments(group.setdefault("moments", moments))
            for parameter in group["params"]:
                keep_in_factors(parameter)
        _lay_out_as_parameters(self)
        # With it set GradScaler leaves unscaling to torch's fused step, and Lightning then refuses
        # to clip gradients. Unscaled before, factors and matrices can be clipped.
        self._step_supports_amp_scaling = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._complete(state.get("defaults", self.defaults).get("moments", "float32"))

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        if "moments" in self.defaults:  # else the optimizer is being made
            self._complete(self.defaults["moments"])

    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return step(self, self.torchs.step, UPDATES[self.torchs], closure)


def check_moments(moments: str) -> None:
    """Refuse an unknown choice.

    Raises:
        UsageError: If it is one.
    """
    if moments not in get_args(Moments):
        raise UsageError(f"moments={moments!r}: choose one of {', '.join(get_args(Moments))}")


def fused_by_choice(
    fused: bool | None, foreach: bool | None, differentiable: bool, params: ParamsT
) -> bool:
    """Whether torch's fused kernels are used; where nothing is said, if they can be.

    Args:
        fused: What the user says.
        foreach: Whether torch's other fast implementation is asked for.
        differentiable: Whether the step is to be differentiated.
        params: What the optimizer is given, as ``listed`` gives it.
    """
    if fused is not None:
        return fused
    return not (foreach or differentiable) and all(map(_can_be_fused, _parameters(params)))


def listed(params: ParamsT) -> ParamsT:
    """What an optimizer is given, as a list that can be read twice."""
    if isinstance(params, Tensor):  # which torch refuses
        return params
    entries = [
        {**entry, "params": list(entry["params"])}
        if isinstance(entry, Mapping) and isinstance(entry["params"], Iterator)
        else entry
        for entry in params
    ]
    return cast(ParamsT, entries)


def _parameters(params: ParamsT) -> Iterator[Tensor]:
    """The parameters in what an optimizer is given: by themselves, by name, or in groups."""
    for entry in params:
        if isinstance(entry, Mapping):
            members = entry["params"]
            yield from [members] if isinstance(members, Tensor) else _parameters(members)
        else:
            yield entry[1] if isinstance(entry, tuple) else entry


def _can_be_fused(parameter: Tensor) -> bool:
    """Torch's kernels go through real numbers as they lie in memory, without gaps."""
    return (
        isinstance(parameter, Tensor)  # torch refuses other things
        and torch.empty_like(parameter, device="meta").stride() == parameter.stride()
        and parameter.is_floating_point()
        and parameter.device.type in ("cpu", "cuda")
    )


def _lay_out_as_parameters(optimizer: Optimizer) -> None:
    """Give loaded moments the memory format of their parameter.

    Torch's fused kernels go through parameter and moments as they lie in memory and do not look
    whether they lie alike; a checkpoint brings the format that it was saved with.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if (
                isinstance(value, Tensor)
                and value.shape == parameter.shape
                and value.stride() != parameter.stride()
            ):
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
