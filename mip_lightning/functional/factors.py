"""K pairs of factors, in place of the matrix ``sum_k left_k right_k^T`` that they make."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mip_lightning.utilities.norms import norm


class Factors(NamedTuple):
    """K pairs of factors of a ``(P, H)`` matrix.

    Attributes:
        left: The columns, shape ``(K, P)``.
        right: The rows, shape ``(K, H)``.
    """

    left: Float[Tensor, "K P"]
    right: Float[Tensor, "K H"]

    def matrix(self) -> Float[Tensor, "P H"]:
        """The matrix."""
        if len(self.left) == 1:  # the product of matrices would run on one thread of a CPU
            return self.left.T * self.right
        return self.left.T @ self.right

    def rows(self, start: int, out: Float[Tensor, "rows H"]) -> None:
        """Write some rows of the matrix.

        Args:
            start: The first of them.
            out: Where they go; as many as it holds are written.
        """
        columns = self.left[:, start : start + len(out)].T
        if len(self.left) == 1:
            torch.mul(columns, self.right, out=out)
        else:
            torch.mm(columns, self.right, out=out)

    def joined(self, other: "Factors") -> "Factors | None":
        """The factors of a sum; ``None`` if the matrix is not larger than they would be."""
        if len(self.left) + len(other.left) > max_pairs(self.left.shape[1], self.right.shape[1]):
            return None
        return Factors(torch.cat([self.left, other.left]), torch.cat([self.right, other.right]))

    def scaled(self, operation: Callable[[Tensor], Tensor]) -> "Factors":
        """The factors of the matrix that a product or quotient with a number gives.

        Args:
            operation: The product or quotient.
        """
        return Factors(operation(self.left), self.right)

    def norm(self, dtype: torch.dtype) -> Float[Tensor, ""]:
        """Frobenius norm: ``|sum_k l_k r_k^T|^2 = sum_ij (l_i . l_j) (r_i . r_j)``.

        Args:
            dtype: Type of the result.
        """
        if len(self.left) == 1:
            return (norm(self.left) * norm(self.right)).to(dtype)
        # In float64, for pairs may cancel, and squares run over.
        left, right = self.left.double(), self.right.double()
        return ((left @ left.T) * (right @ right.T)).sum().clamp(min=0).sqrt().to(dtype)


def max_pairs(num_rows: int, num_columns: int) -> int:
    """The largest number K of pairs of factors that are fewer numbers than the matrix.

    Args:
        num_rows: P.
        num_columns: H.
    """
    return (num_rows * num_columns - 1) // (num_rows + num_columns)
