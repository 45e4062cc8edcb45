"""One pass over a parameter and its moments, from the factors of its gradient.

The parameter is updated a block of rows at a time: the block's gradient goes into a small buffer
that stays in the cache, and torch's fused kernel updates the block from it. So parameter and
moments are read and written once, and the gradient is never in memory as a whole.

The kernels have no public name but ``torch.optim.adam.adam(..., fused=True)`` and its like, which
take a tenth of a millisecond a call: a fifth of the pass over a small head.
"""

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.optim import Optimizer

from mip_lightning.functional.factored_gradient import FactoredGradient

BLOCK_NUMBERS = {"cpu": 2**20, "cuda": 2**22}
"""Numbers in a block: its gradient, parameters and moments stay in a processor's last cache."""

States: TypeAlias = MutableMapping[Tensor, dict[str, Any]]
"""An optimizer's state of each parameter."""

Update: TypeAlias = Callable[[States, Tensor, Tensor, dict[str, Any]], None]
"""Updates a parameter with its gradient, given the optimizer's state and the group's options."""


def step(
    optimizer: Optimizer,
    ordinary: Callable[..., Any],
    update: Update,
    closure: Callable[[], Any] | None,
) -> Any:
    """Update by blocks what has a factored gradient, and leave the rest to torch.

    Args:
        optimizer: The optimizer.
        ordinary: The step of torch's optimizer.
        update: Updates one parameter.
        closure: Computes the loss and the gradients.
    """
    aside: list[tuple[Tensor, Tensor]] = []

    def then_update() -> Any:
        loss = None if closure is None else closure()
        with torch.no_grad():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    gradient = parameter.grad
                    if gradient is not None and _goes_by_blocks(
                        parameter, gradient, group, optimizer.state
                    ):
                        update(optimizer.state, parameter, gradient, group)
                        aside.append((parameter, gradient))
                        parameter.grad = None  # torch passes over it
                if group.get("momentum") and group["fused"]:
                    _start_late_momenta(optimizer.state, group)
        return loss

    # torch wraps a class's step so that it calls the optimizer's hooks, and so it has done with
    # ours: within it no hook is to be called again. The mark has no public name.
    inner = ordinary.__wrapped__ if getattr(ordinary, "hooked", False) else ordinary  # type: ignore[attr-defined]
    try:
        return inner(optimizer, then_update)
    finally:
        for parameter, gradient in aside:
            parameter.grad = gradient


def _goes_by_blocks(
    parameter: Tensor, gradient: Tensor, group: dict[str, Any], states: States
) -> bool:
    """Whether a gradient has factors, or its parameter has moments that torch's step cannot take.

    A parameter with moments in bfloat16 has now and then a gradient that was written out: one
    clipped by value, or one of too many draws.
    """
    if group["differentiable"] or not parameter.is_contiguous():
        return False
    if isinstance(gradient, FactoredGradient) and gradient.factors is not None:
        return True
    moments = (value for name, value in states.get(parameter, {}).items() if name != "step")
    return parameter.dtype != torch.bfloat16 and any(
        isinstance(moment, Tensor) and moment.dtype == torch.bfloat16 for moment in moments
    )


def _start_late_momenta(states: States, group: dict[str, Any]) -> None:
    """Start the momenta of parameters that get their first gradient after others.

    Torch's fused SGD knows a first step of all parameters alone. Here they start so that its next
    step gives them their gradient, which is what a momentum first is.
    """
    trained = [parameter for parameter in group["params"] if parameter.grad is not None]
    late = [p for p in trained if states.get(p, {}).get("momentum_buffer") is None]
    if len(late) == len(trained):
        return
    for parameter in late:
        gradient = -parameter.grad if group["maximize"] else parameter.grad
        gradient = gradient.add(parameter, alpha=float(group["weight_decay"]))
        start = gradient.mul_(group["dampening"] / group["momentum"])
        states[parameter]["momentum_buffer"] = start


def update_by_adam(
    states: States, parameter: Tensor, gradient: Tensor, group: dict[str, Any]
) -> None:
    """Update a parameter as ``torch.optim.Adam`` does.

    Args:
        states: The optimizer's state; moments are made where there are none.
        parameter: The parameter, contiguous.
        gradient: Its gradient, with factors or a matrix.
        group: The options of its group.
    """
    state = states[parameter]
    names = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]
    if "step" not in state:
        on_device = group["fused"] or group["capturable"]
        state["step"] = torch.zeros(
            (), dtype=torch.float32, device=parameter.device if on_device else "cpu"
        )
    for name in names:
        state[name] = _moment(state.get(name), parameter, group)
    noises = _noises(parameter, group, len(names))
    state["step"] += 1
    step = state["step"].to(parameter.device)
    kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
    options = {
        "lr": _number(group["lr"]),
        "beta1": float(group["betas"][0]),
        "beta2": float(group["betas"][1]),
        "weight_decay": group["weight_decay"],
        "eps": group["eps"],
        "amsgrad": group["amsgrad"],
        "maximize": group["maximize"],
    }
    for block, block_gradient in _blocks(parameter, gradient):
        kept = [state[name][block] for name in names]
        moments = [moment.to(parameter.dtype) for moment in kept]
        kernel(
            [parameter[block]],
            [block_gradient],
            moments[:1],
            moments[1:2],
            moments[2:],
            [step],
            **options,
        )
        _keep(kept, moments, noises)


def update_by_sgd(
    states: States, parameter: Tensor, gradient: Tensor, group: dict[str, Any]
) -> None:
    """Update a parameter as ``torch.optim.SGD`` does.

    Args:
        states: The optimizer's state; the momentum is made where there is none.
        parameter: The parameter, contiguous.
        gradient: Its gradient, with factors or a matrix.
        group: The options of its group.
    """
    has_momentum = group["momentum"] != 0
    state = states[parameter] if has_momentum else {}
    is_first = state.get("momentum_buffer") is None
    if has_momentum:
        state["momentum_buffer"] = _moment(state.get("momentum_buffer"), parameter, group)
    noises = _noises(parameter, group, int(has_momentum))
    options = {
        "lr": _number(group["lr"]),
        "weight_decay": _number(group["weight_decay"]),
        "momentum": group["momentum"],
        "dampening": group["dampening"],
        "nesterov": group["nesterov"],
        "maximize": group["maximize"],
        "is_first_step": is_first and has_momentum,  # the momentum then is the gradient
    }
    for block, block_gradient in _blocks(parameter, gradient):
        kept = [state["momentum_buffer"][block]] if has_momentum else []
        moments = [moment.to(parameter.dtype) for moment in kept]
        torch._fused_sgd_([parameter[block]], [block_gradient], moments, **options)
        _keep(kept, moments, noises)


def _number(value: float | Tensor) -> float | Tensor:
    """A number for a kernel: a tensor only if it is on a GPU, which would have to be waited for."""
    return float(value) if isinstance(value, Tensor) and value.device.type == "cpu" else value


def _blocks(parameter: Tensor, gradient: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows, each with its gradient, which the next one may overwrite."""
    num_rows, width = parameter.shape
    at_once = _rows_at_once(parameter)
    blocks = [slice(start, start + at_once) for start in range(0, num_rows, at_once)]
    if isinstance(gradient, FactoredGradient) and gradient.factors is not None:
        buffer = parameter.new_empty(at_once, width)
        for block in blocks:
            rows = buffer[: num_rows - block.start]
            gradient.factors.rows(block.start, rows)
            yield block, rows
    else:
        matrix = gradient.written_out() if isinstance(gradient, FactoredGradient) else gradient
        for block in blocks:
            yield block, matrix[block].contiguous()


def _rows_at_once(parameter: Tensor) -> int:
    return min(len(parameter), max(1, BLOCK_NUMBERS[parameter.device.type] // parameter.shape[1]))


def _moment(moment: Tensor | None, parameter: Tensor, group: dict[str, Any]) -> Tensor:
    """A moment as the group keeps it, which starts at zero; one that was loaded may differ."""
    dtype = torch.bfloat16 if group["moments"] == "bfloat16" else parameter.dtype
    if moment is None:
        return torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)
    return moment.to(dtype)


def _keep(
    kept: list[Tensor],
    moments: list[Tensor],
    noises: list[Integer[Tensor, "rows H"]],
) -> None:
    """Put updated moments back, where they are not the kept ones themselves."""
    for index, (old, new) in enumerate(zip(kept, moments, strict=True)):
        if new is not old:
            old.copy_(_rounded(new, noises[index]) if old.dtype == torch.bfloat16 else new)


def _noises(
    parameter: Tensor, group: dict[str, Any], num_moments: int
) -> list[Integer[Tensor, "rows H"]]:
    """Random numbers for the rounding of each moment.

    All blocks share them, for on a CPU to draw them takes longer than the step. Each rounding is
    right in the mean all the same. They are those of torch's generator, as dropout's are.
    """
    if group["moments"] != "bfloat16" or parameter.dtype == torch.bfloat16:
        return []
    shape = (_rows_at_once(parameter), parameter.shape[1])
    return [
        torch.randint(0, 2**16, shape, dtype=torch.int32, device=parameter.device)
        for _ in range(num_moments)
    ]


def _rounded(
    values: Float[Tensor, "rows H"], noise: Integer[Tensor, "more_rows H"]
) -> Float[Tensor, "rows H"]:
    """Values that bfloat16 holds, rounded up or down at random so that their mean is right.

    bfloat16 is the upper half of a float32: the noise is added to the lower half, and that half
    dropped. With ``beta2 = 0.999`` a second moment changes by less than the distance between two
    values of bfloat16, so that it would never move if it were rounded to the nearest.
    """
    bits = values.float().view(torch.int32)
    rounded = (bits + noise[: len(bits)]).bitwise_and_(-(2**16)).view(torch.float32)
    return torch.where(values.isnan(), values, rounded)  # for NaN the sum may run over
