"""Adam, AdamW and SGD of torch that update a head's weight from the factors of its gradient.

They are torch's optimizers, with the same options, state and results. A parameter whose gradient is
a ``FactoredGradient`` is updated from the factors (``_update.py``). All other parameters
are left to torch, by fused kernels unless another implementation is chosen.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from mip_lightning.functional.factors import max_pairs
from mip_lightning.functional.linear import why_written_out
from mip_lightning.optim._base import (
    FactoredOptimizer,
    Moments,
    check_moments,
    fused_by_choice,
    listed,
)


class FactoredAdam(FactoredOptimizer, torch.optim.Adam):
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
            ``differentiable``, or a parameter is none that torch's fused kernels are for. They
            take no sparse gradients.
        decoupled_weight_decay: Decay weights as AdamW does.
        moments: ``bfloat16`` keeps the moments of factored parameters in half the memory, rounded
            up or down at random so that small changes add up.

    Raises:
        UsageError: If ``moments`` is unknown.
    """

    torchs = torch.optim.Adam

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
        params = listed(params)
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
            fused=fused_by_choice(fused, foreach, differentiable, params),
            decoupled_weight_decay=decoupled_weight_decay,
        )
        self._complete(moments)


class FactoredAdamW(FactoredOptimizer, torch.optim.AdamW):
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
            ``differentiable``, or a parameter is none that torch's fused kernels are for. They
            take no sparse gradients.
        moments: As ``FactoredAdam``.

    Raises:
        UsageError: If ``moments`` is unknown.
    """

    torchs = torch.optim.AdamW

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
        params = listed(params)
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
            fused=fused_by_choice(fused, foreach, differentiable, params),
        )
        self._complete(moments)


class FactoredSGD(FactoredOptimizer, torch.optim.SGD):
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
            ``differentiable``, or a parameter is none that torch's fused kernels are for. They
            take no sparse gradients.
        moments: As ``FactoredAdam``, of the momentum.

    Raises:
        UsageError: If ``moments`` is unknown.
    """

    torchs = torch.optim.SGD

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
        params = listed(params)
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
            fused=fused_by_choice(fused, foreach, differentiable, params),
        )
        self._complete(moments)


FACTORED: dict[type[Optimizer], type[Optimizer]] = {
    kind.torchs: kind for kind in (FactoredAdam, FactoredAdamW, FactoredSGD)
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
    owners = {
        type(optimizer).__name__: group
        for optimizer in optimizers
        for group in optimizer.param_groups
        if any(weight is parameter for parameter in group["params"])
    }
    for name, group in owners.items():
        if "moments" not in group:
            names = ", ".join(kind.__name__ for kind in FACTORED.values())
            reason = f"{name} takes no factors, as {names} do"
        elif group["differentiable"]:
            reason = f"{name} is differentiable"
        elif reason is None:
            limit = f", in batches of up to {max_pairs(*weight.shape)} samples"
            return (
                "The head's gradient is kept as factors"
                f"{limit if num_draws is None else ''}: {name} updates it from them"
            )
    return f"The head's gradient is written out: {reason or 'the head is not trained'}"
