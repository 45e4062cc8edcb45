"""Adam, AdamW and SGD of torch that update a head's weight from the factors of its gradient.

They are torch's optimizers, with the same options, state and results. A parameter whose gradient is
a ``FactoredGradient`` is updated from the factors (``factored_update.py``). All other parameters
are left to torch, by fused kernels unless another implementation is chosen.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from mip_lightning.errors import UsageError
from mip_lightning.factored_gradient import max_pairs
from mip_lightning.factored_product import why_written_out
from mip_lightning.factored_update import step, update_by_adam, update_by_sgd

Moments: TypeAlias = Literal["float32", "bfloat16"]
"""How moments of the parameters with a factored gradient are kept."""


class FactoredAdam(torch.optim.Adam):
    """``torch.optim.Adam`` in one pass over a head's weight and moments.

    Args:
        params: Parameters, or groups of them with options.
        lr: Learning rate.
        betas: Decay of the first and the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Weight decay, L2 unless ``decoupled_weight_decay``.
        amsgrad: Use the maximum of the second moments.
        foreach: As torch's; other parameters only.
        maximize: Go up the gradient.
        capturable: As torch's; other parameters only.
        differentiable: As torch's; then gradients are written out.
        fused: As torch's, for the other parameters; by default yes, unless ``foreach`` or
            ``differentiable``.
        decoupled_weight_decay: Decay weights as AdamW does.
        moments: ``bfloat16`` keeps the moments of factored parameters in half the memory, rounded
            up or down at random so that small changes add up.

    Raises:
        UsageError: If ``moments`` is unknown.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        moments: Moments = "float32",
    ) -> None:
        check_moments(moments)
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=_fused(fused, foreach, differentiable),
            decoupled_weight_decay=decoupled_weight_decay,
        )
        _complete(self, moments)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        _complete(self, state.get("defaults", self.defaults).get("moments", "float32"))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters, as torch's optimizer does."""
        return step(self, torch.optim.Adam.step, update_by_adam, closure)


class FactoredAdamW(torch.optim.AdamW):
    """``torch.optim.AdamW`` in one pass over a head's weight and moments.

    Args:
        params: Parameters, or groups of them with options.
        lr: Learning rate.
        betas: Decay of the first and the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay.
        amsgrad: Use the maximum of the second moments.
        maximize: Go up the gradient.
        foreach: As torch's; other parameters only.
        capturable: As torch's; other parameters only.
        differentiable: As torch's; then gradients are written out.
        fused: As torch's, for the other parameters; by default yes, unless ``foreach`` or
            ``differentiable``.
        moments: As ``FactoredAdam``.

    Raises:
        UsageError: If ``moments`` is unknown.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        moments: Moments = "float32",
    ) -> None:
        check_moments(moments)
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=_fused(fused, foreach, differentiable),
        )
        _complete(self, moments)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _complete(self, state.get("defaults", self.defaults).get("moments", "float32"))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters, as torch's optimizer does."""
        return step(self, torch.optim.AdamW.step, update_by_adam, closure)


class FactoredSGD(torch.optim.SGD):
    """``torch.optim.SGD`` in one pass over a head's weight and momentum.

    Args:
        params: Parameters, or groups of them with options.
        lr: Learning rate.
        momentum: Decay of the momentum.
        dampening: Share of a gradient that does not enter the momentum.
        weight_decay: L2 weight decay.
        nesterov: Look ahead by the momentum.
        maximize: Go up the gradient.
        foreach: As torch's; other parameters only.
        differentiable: As torch's; then gradients are written out.
        fused: As torch's, for the other parameters; by default yes, unless ``foreach`` or
            ``differentiable``.
        moments: As ``FactoredAdam``, of the momentum.

    Raises:
        UsageError: If ``moments`` is unknown.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        moments: Moments = "float32",
    ) -> None:
        check_moments(moments)
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=_fused(fused, foreach, differentiable),
        )
        _complete(self, moments)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        _complete(self, state.get("defaults", self.defaults).get("moments", "float32"))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters, as torch's optimizer does."""
        return step(self, torch.optim.SGD.step, update_by_sgd, closure)


FACTORED: dict[type[Optimizer], type[Optimizer]] = {
    torch.optim.Adam: FactoredAdam,
    torch.optim.AdamW: FactoredAdamW,
    torch.optim.SGD: FactoredSGD,
}
"""The optimizer here that does what one of torch's does."""


def describe_update(
    weight: nn.Parameter | None, num_draws: int | None, optimizers: Sequence[Optimizer]
) -> str:
    """Whether a head's weight is updated from factors, and why not if it is not, in a line.

    Args:
        weight: The weight whose gradient can be kept as factors, if there is one.
        num_draws: K, the number of draws in a step; ``None`` if it is that of samples.
        optimizers: The optimizers of the run.
    """
    if weight is None:
        return "The head's gradients are written out: only one of a single matrix has factors"
    reason = why_written_out(1 if num_draws is None else num_draws, weight)
    if reason is None:
        for optimizer in optimizers:
            name = type(optimizer).__name__
            if any(weight is p for group in optimizer.param_groups for p in group["params"]):
                if isinstance(optimizer, tuple(FACTORED.values())):
                    limit = f", in batches of up to {max_pairs(weight.shape)} samples"
                    return (
                        "The head's gradient is kept as factors"
                        f"{limit if num_draws is None else ''}: {name} updates it from them"
                    )
                names = ", ".join(kind.__name__ for kind in FACTORED.values())
                reason = f"{name} takes no factors, as {names} do"
    return f"The head's gradient is written out: {reason or 'the head is not trained'}"


def check_moments(moments: str) -> None:
    """Refuse an unknown choice.

    Raises:
        UsageError: If it is one.
    """
    if moments not in get_args(Moments):
        raise UsageError(f"moments={moments!r}: choose one of {', '.join(get_args(Moments))}")


def _fused(fused: bool | None, foreach: bool | None, differentiable: bool) -> bool:
    return not (foreach or differentiable) if fused is None else fused


def _complete(optimizer: Optimizer, moments: str) -> None:
    """Give the optimizer and the groups that lack it the choice of moments; mend a loaded state."""
    optimizer.defaults["moments"] = moments
    for group in optimizer.param_groups:
        group.setdefault("moments", moments)
    _lay_out_as_parameters(optimizer)
    # With it set GradScaler leaves unscaling to torch's fused step, and Lightning then refuses to
    # clip gradients. Unscaled before, factors and matrices can be clipped.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


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
