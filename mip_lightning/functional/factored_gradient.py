"""The gradient of a head's weight as K pairs of factors, in place of the matrix that they make.

With K draws in a step the gradient of the ``(P, H)`` weight is ``sum_k left_k right_k^T``, of
``K (P + H)`` numbers: ``left_k`` is the gradient with respect to the k-th output, ``right_k`` the
k-th input. To write the matrix out and read it again is most of what a step of a hypernetwork costs
next to its primary; the optimizers of ``optim/`` take the factors as they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from typing_extensions import override

from mip_lightning.functional.factors import Factors

aten = torch.ops.aten


class _Value:
    """What a factored gradient and those detached from it share: factors, or a matrix.

    Args:
        factors: Gradients with respect to the outputs, and inputs.
    """

    def __init__(self, factors: Factors) -> None:
        self.factors: Factors | None = factors
        self.matrix: Tensor | None = None

    def becomes(self, factors: Factors) -> None:
        self.factors, self.matrix = factors, None

    def written_out(self) -> Float[Tensor, "P H"]:
        if self.matrix is None:
            assert self.factors is not None
            self.matrix = self.factors.matrix()
        return self.matrix


class FactoredGradient(Tensor):
    """Stands for the matrix ``sum_k left_k right_k^T`` and holds its factors.

    It is a tensor of the matrix's shape. What is done with a gradient on its way to an optimizer
    keeps the factors: to add another one, to multiply or divide by a number, to take the 2-norm.
    Any other operation gets the matrix, which is written out once and kept; one that changes the
    matrix, or gives a view of it, leaves nothing but the matrix.

    Source: the gradient of ``hidden @ weight^T`` with respect to ``weight``.

    Args:
        left: Gradient with respect to each of the K outputs.
        right: The K inputs.
    """

    _value: _Value

    # As every tensor that is nothing but __torch_dispatch__: without it torch would try to make
    # each result one of this class. It has no public name.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(  # noqa: D102 - documented with the class
        cls: type["FactoredGradient"], left: Float[Tensor, "K P"], right: Float[Tensor, "K H"]
    ) -> "FactoredGradient":
        shape = torch.Size((left.shape[1], right.shape[1]))
        # Detached, else the graph behind them would be kept.
        value = _Value(Factors(left.detach(), right.detach()))
        return cls._of(value, shape, left.dtype, left.device)

    @classmethod
    def _of(
        cls, value: _Value, shape: torch.Size, dtype: torch.dtype, device: torch.device
    ) -> "FactoredGradient":
        # It has no public name; torch's own tensors that are made of others are made so.
        gradient: FactoredGradient = Tensor._make_wrapper_subclass(
            cls, shape, dtype=dtype, device=device
        )
        gradient._value = value
        return gradient

    @property
    def factors(self) -> Factors | None:
        """The factors left and right; ``None`` once only the matrix is left."""
        return self._value.factors

    def written_out(self) -> Float[Tensor, "P H"]:
        """The matrix, an ordinary tensor that is not to be changed."""
        return self._value.written_out()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        factors = "written out" if self.factors is None else f"{len(self.factors[0])} pairs"
        return f"FactoredGradient({factors}, shape={tuple(self.shape)}, dtype={self.dtype})"

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.written_out().clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.written_out().__reduce_ex__(protocol)

    @property
    @override
    def data(self) -> "FactoredGradient":
        return _detach(aten.detach.default, self)

    @data.setter
    @override
    def data(self, other: Tensor) -> None:
        Tensor.data.__set__(self, other)  # type: ignore[attr-defined]  # shape and type of numbers
        if isinstance(other, FactoredGradient):
            self._value = other._value
        else:
            self._value.factors, self._value.matrix = None, other.detach()

    # What goes past the operations of torch to the numbers in memory gets those of the matrix.

    def _in_memory(self) -> Tensor:
        matrix = self.written_out()
        self._value.factors = None  # they may be changed
        return matrix

    @override
    def data_ptr(self) -> int:
        return self._in_memory().data_ptr()

    @override
    def untyped_storage(self) -> torch.UntypedStorage:
        return self._in_memory().untyped_storage()

    def __dlpack__(self, **options: Any) -> Any:
        return self._in_memory().__dlpack__(**options)

    @override
    def numpy(self, *, force: bool = False) -> Any:
        return self._in_memory().numpy(force=force)

    @override
    def tolist(self) -> Any:
        return self.written_out().tolist()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do an operation on the factors if that can be done, else on the matrix."""
        kwargs = kwargs or {}
        known = _ON_FACTORS.get(func)
        if known is not None:
            result = known(func, *args, **kwargs)
            if result is not NotImplemented:
                return result
        return _on_matrices(func, args, kwargs)


def _on_matrices(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Do an operation on the matrices; the factors of those that it may change are dropped."""
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | dict(kwargs)
    changed: dict[int, FactoredGradient] = {}
    for argument in func._schema.arguments:
        if argument.alias_info is not None:  # written to, or seen through the result
            for leaf in tree_leaves(given.get(argument.name)):
                if isinstance(leaf, FactoredGradient):
                    changed[id(leaf.written_out())] = leaf
                    leaf._value.factors = None

    def matrix(gradient: FactoredGradient) -> Tensor:
        return gradient.written_out()

    result = func(
        *tree_map_only(FactoredGradient, matrix, tuple(args)),
        **tree_map_only(FactoredGradient, matrix, dict(kwargs)),
    )
    return tree_map_only(Tensor, lambda t: changed.get(id(t), t), result)


def _is_number(other: Any) -> bool:
    if isinstance(other, Tensor):
        return other.ndim == 0 and type(other) is Tensor
    return isinstance(other, (int, float))


def _is_factored(gradient: Any) -> bool:
    return isinstance(gradient, FactoredGradient) and gradient.factors is not None


def _detach(func: Any, gradient: FactoredGradient) -> FactoredGradient:
    return FactoredGradient._of(gradient._value, gradient.shape, gradient.dtype, gradient.device)


def _record_stream(func: Any, gradient: FactoredGradient, stream: Any) -> Any:
    if gradient.factors is None:
        return NotImplemented
    for factor in gradient.factors:
        func(factor, stream)
    return None


def _zero_(func: Any, gradient: FactoredGradient) -> FactoredGradient:
    left, right = (
        torch.zeros(0, size, dtype=gradient.dtype, device=gradient.device)
        for size in gradient.shape
    )
    gradient._value.becomes(Factors(left, right))
    return gradient


def _joined(first: Any, second: Any, alpha: float) -> Factors | None:
    if not (_is_factored(first) and _is_factored(second)) or alpha != 1:
        return None
    joined: Factors | None = first.factors.joined(second.factors)
    return joined


def _add(func: Any, first: Any, second: Any, *, alpha: float = 1) -> Any:
    factors = _joined(first, second, alpha)
    return NotImplemented if factors is None else FactoredGradient(*factors)


def _add_(func: Any, first: Any, second: Any, *, alpha: float = 1) -> Any:
    factors = _joined(first, second, alpha)
    if factors is not None:
        first._value.becomes(factors)
        return first
    if not _is_factored(second) or (first.shape, first.dtype) != (second.shape, second.dtype):
        return NotImplemented
    left, right = second.factors
    matrix = first
    if isinstance(first, FactoredGradient):
        matrix = first.written_out()
        first._value.factors = None
    matrix.addmm_(left.T, right, alpha=alpha)  # the second one's matrix need not be written out
    return first


def _multiply(func: Any, first: Any, second: Any) -> Any:
    if isinstance(first, FactoredGradient):
        return _scaled(func, first, second)
    return _scaled(func, second, first)


def _scaled(func: Any, gradient: Any, number: Any) -> Any:
    """The product with a number, or the quotient."""
    if not (_is_factored(gradient) and _is_number(number)):
        return NotImplemented
    return FactoredGradient(*gradient.factors.scaled(lambda factor: func(factor, number)))


def _scale_(func: Any, gradient: Any, number: Any) -> Any:
    if not (_is_factored(gradient) and _is_number(number)):
        return NotImplemented
    # Not in place: the factor may be some other gradient's too.
    operation = aten.mul.Tensor if func is aten.mul_.Tensor else aten.div.Tensor
    gradient._value.becomes(gradient.factors.scaled(lambda factor: operation(factor, number)))
    return gradient


def _norm(
    func: Any,
    gradient: FactoredGradient,
    ord: float = 2,  # torch's name
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    if gradient.factors is None or ord != 2 or dim is not None or keepdim:
        return NotImplemented
    return gradient.factors.norm(dtype or gradient.dtype)


def _unscale_(func: Any, gradients: list[Tensor], found_inf: Tensor, inverse_scale: Tensor) -> None:
    """What ``GradScaler`` does: a factor that is not finite makes a matrix that is not."""
    one = torch.ones_like(inverse_scale)
    scaled, looked_at = [], []
    for gradient in gradients:
        if isinstance(gradient, FactoredGradient) and gradient.factors is not None:
            left, right = (factor.clone() for factor in gradient.factors)
            gradient._value.becomes(Factors(left, right))
            scaled.append(left)
            looked_at.append(right)
        elif isinstance(gradient, FactoredGradient):
            scaled.append(gradient.written_out())
        else:
            scaled.append(gradient)
    func(scaled, found_inf, inverse_scale)
    if looked_at:
        func(looked_at, found_inf, one)


def _for_each(operation: Any) -> Any:
    """An operation on a list of tensors: on factored gradients alone, on the others at once."""

    def run(func: Any, tensors: list[Tensor], *args: Any, **kwargs: Any) -> Any:
        ordinary = [t for t in tensors if not isinstance(t, FactoredGradient)]
        results = iter(func(ordinary, *args, **kwargs) or ()) if ordinary else iter(())
        joined = [
            operation(t, *args, **kwargs) if isinstance(t, FactoredGradient) else next(results, t)
            for t in tensors
        ]
        return joined if func._schema.returns else None  # in place there are none

    return run


def _foreach_norm(tensor: Tensor, ord: float = 2, dtype: torch.dtype | None = None) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, ord, dtype=dtype)
    return norm


_ON_FACTORS: dict[Any, Any] = {
    aten.detach.default: _detach,
    aten.record_stream.default: _record_stream,
    aten.zero_.default: _zero_,
    aten.add.Tensor: _add,
    aten.add_.Tensor: _add_,
    aten.mul.Tensor: _multiply,
    aten.div.Tensor: _scaled,
    aten.mul_.Tensor: _scale_,
    aten.div_.Tensor: _scale_,
    aten.linalg_vector_norm.default: _norm,
    aten._amp_foreach_non_finite_check_and_unscale_.default: _unscale_,
    aten._foreach_norm.Scalar: _for_each(_foreach_norm),
    aten._foreach_zero_.default: _for_each(aten.zero_.default),
    aten._foreach_mul_.Scalar: _for_each(aten.mul_.Tensor),
    aten._foreach_mul_.Tensor: _for_each(aten.mul_.Tensor),
    aten._foreach_div_.Scalar: _for_each(aten.div_.Tensor),
    aten._foreach_div_.Tensor: _for_each(aten.div_.Tensor),
}
"""What is done on factors; a function that says ``NotImplemented`` leaves it to the matrices."""
