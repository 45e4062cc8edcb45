"""The product of a head's weight, whose gradient with respect to the weight stays in factors.

So it does where an optimizer has said that it takes them, by ``keep_in_factors``; whoever looks at
a gradient of another weight finds an ordinary tensor.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from mip_lightning.functional.factored_gradient import FactoredGradient
from mip_lightning.functional.factors import Factors, max_pairs

_MARK = "_kept_in_factors"

BLOCK_ROWS = 256
"""Rows of the weight that are multiplied at a time on a CPU."""

MAX_BLOCK_DRAWS = 8
"""Up to so many draws the blocks are faster than one product (docs/performance.md)."""

MIN_FACTORED = 2**21
"""Numbers in a weight below which a written-out gradient is as fast (docs/performance.md)."""


def keep_in_factors(weight: Tensor) -> None:
    """From now on the gradient of a weight is a ``FactoredGradient`` where it can be.

    Args:
        weight: The weight, whose optimizer takes factors.
    """
    setattr(weight, _MARK, True)  # a copy of the weight, which that optimizer has not, lacks it


def factored_linear(
    hidden: Float[Tensor, "K H"], weight: Float[Tensor, "rows H"]
) -> Float[Tensor, "K rows"]:
    """``hidden @ weight^T``; the gradient of the weight is a ``FactoredGradient`` where it can be.

    Args:
        hidden: The last hidden activation of K draws.
        weight: The weight.
    """
    if torch.compiler.is_compiling() or weight.numel() < MIN_FACTORED:
        return F.linear(hidden, weight)
    if _is_special(hidden, weight):
        return F.linear(hidden, weight)
    factored = getattr(weight, _MARK, False) and why_written_out(len(hidden), weight) is None
    product: Tensor = _FactoredProduct.apply(hidden, weight, factored)
    return product


def why_written_out(num_draws: int, weight: Float[Tensor, "rows H"]) -> str | None:
    """What of a run makes the gradient of a weight be written out, in words.

    Args:
        num_draws: K, the number of draws in a step.
        weight: The weight.

    Returns:
        The reason; ``None`` where the gradient stays in factors.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        ranks = torch.distributed.get_world_size()
        # DistributedDataParallel copies each gradient into its buffer on one rank too.
        return f"{ranks} ranks average it" if ranks > 1 else "distributed training copies it"
    if not weight.is_leaf:
        return "it is computed, as by a parametrization"
    if not weight.is_contiguous():
        return "it is not contiguous"
    if weight.numel() < MIN_FACTORED:
        return "it is so small that this is as fast"
    if num_draws > max_pairs(*weight.shape):
        return f"the factors of {num_draws} draws are not smaller"
    if weight.device.type not in ("cpu", "cuda"):
        return f"torch's fused optimizers are used on CPU and CUDA, not on {weight.device.type}"
    return None


def _is_special(hidden: Tensor, weight: Tensor) -> bool:
    """Whether torch transforms this call, or would do something with the weight's gradient."""
    return (
        torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        or not weight.is_leaf
        or not weight.is_contiguous()
        or hidden.dtype != weight.dtype
        or torch.is_autocast_enabled(weight.device.type)
        or torch.autograd.forward_ad._current_level >= 0  # it has no public name
        or _is_transformed()
    )


def _is_transformed() -> bool:
    """Whether a transform of ``torch.func`` runs, or ``autograd.grad(is_grads_batched=True)``.

    Neither has a public name.
    """
    return bool(
        torch._C._are_functorch_transforms_active()
        or torch._C._dispatch_tls_is_dispatch_key_included("VmapMode")
    )


class _FactoredProduct(torch.autograd.Function):
    @staticmethod
    def forward(hidden: Tensor, weight: Tensor, factored: bool) -> Tensor:
        return _product(hidden, weight)

    @staticmethod
    @override
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.factored = inputs[2]

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, weight = ctx.saved_tensors
        # The gradient is itself differentiated, or many backward passes run at once.
        special = torch.is_grad_enabled() or _is_transformed()
        for_hidden = for_weight = None
        if ctx.needs_input_grad[0]:
            for_hidden = gradient @ weight if special else _transposed(gradient, weight)
        if ctx.needs_input_grad[1]:
            factored = ctx.factored and not special
            factors = Factors(gradient, hidden)
            for_weight = FactoredGradient(*factors) if factored else factors.matrix()
        return for_hidden, for_weight, None


def _goes_in_blocks(num_draws: int, weight: Tensor) -> bool:
    """Whether to multiply block by block, on all threads.

    One product of a matrix of many rows with few vectors runs on one thread in MKL.
    """
    return weight.device.type == "cpu" and num_draws <= MAX_BLOCK_DRAWS < len(weight) // BLOCK_ROWS


def _product(hidden: Float[Tensor, "K H"], weight: Float[Tensor, "rows H"]) -> Tensor:
    num_draws, num_blocks = len(hidden), len(weight) // BLOCK_ROWS
    if not _goes_in_blocks(num_draws, weight):
        return F.linear(hidden, weight)
    inside = num_blocks * BLOCK_ROWS
    product = weight.new_empty(len(weight), num_draws)
    torch.bmm(
        weight[:inside].view(num_blocks, BLOCK_ROWS, -1),
        hidden.T.expand(num_blocks, -1, -1),
        out=product[:inside].view(num_blocks, BLOCK_ROWS, num_draws),
    )
    torch.mm(weight[inside:], hidden.T, out=product[inside:])
    return product.T.contiguous()


def _transposed(gradient: Float[Tensor, "K rows"], weight: Float[Tensor, "rows H"]) -> Tensor:
    num_draws, num_blocks = len(gradient), len(weight) // BLOCK_ROWS
    if not _goes_in_blocks(num_draws, weight):
        return gradient @ weight
    inside = num_blocks * BLOCK_ROWS
    blocks = torch.bmm(
        gradient[:, :inside].unflatten(1, (num_blocks, BLOCK_ROWS)).transpose(0, 1),
        weight[:inside].view(num_blocks, BLOCK_ROWS, -1),
    )
    return blocks.sum(dim=0).addmm_(gradient[:, inside:], weight[inside:])
