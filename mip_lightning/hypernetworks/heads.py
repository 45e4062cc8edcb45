"""Heads: from the last hidden activation to the flat predicted change delta."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from mip_lightning.errors import UsageError
from mip_lightning.functional.linear import factored_linear
from mip_lightning.hypernetworks._initialization import HeadInit, activation_gain
from mip_lightning.hypernetworks._parameter_layout import ParameterLayout


class Head(nn.Module, ABC):
    """Predicts the flat change of all predicted tensors, without a bias: that is theta0.

    Args:
        hidden_size: Width H of the last hidden activation.
        layout: The predicted tensors.
        start: How it is initialized.
    """

    def __init__(self, hidden_size: int, layout: ParameterLayout, start: HeadInit) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.layout = layout

    @property
    def factored_weight(self) -> nn.Parameter | None:
        """The weight whose gradient is kept as factors where it can be; by default none."""
        return None

    @abstractmethod
    def forward(self, hidden: Float[Tensor, "K H"]) -> Float[Tensor, "K P"]:
        """Predict the flat change for each of K draws."""


HeadType: TypeAlias = Callable[[int, ParameterLayout, HeadInit], Head]
"""A head's class, or what else makes one."""


class DenseHead(Head):
    """One ``(P, H)`` matrix.

    Args:
        hidden_size: Width H of the last hidden activation.
        layout: The predicted tensors.
        start: How it is initialized: the rows of each tensor normal, with their own std.
    """

    def __init__(self, hidden_size: int, layout: ParameterLayout, start: HeadInit) -> None:
        super().__init__(hidden_size, layout, start)
        self.weight = nn.Parameter(torch.empty(layout.num_predicted, hidden_size))
        _initialize_rows(self.weight, layout.sizes, start.row_stds)

    @property
    @override
    def factored_weight(self) -> nn.Parameter:
        return self.weight

    def forward(self, hidden: Float[Tensor, "K H"]) -> Float[Tensor, "K P"]:
        """Multiply the matrix."""
        return factored_linear(hidden, self.weight)


class LowRankHead(Head):
    """Predicts two factors for each matrix: its change is ``left @ right`` of a given rank.

    A tensor ``(out, in, *kernel)`` is taken as a matrix of ``out`` rows. It has
    ``rank * (rows + columns)`` predicted numbers in place of ``rows * columns``, and is predicted
    densely where that would be no less, as tensors of one dimension are. As both factors are
    predicted, the change is of second order in the hidden activation.

    Args:
        hidden_size: Width H of the last hidden activation.
        layout: The predicted tensors.
        start: How it is initialized: the right factors with variance 1, the left ones so that
            the change has its target variance.
        rank: Rank r, 1 or more.

    Raises:
        UsageError: If ``rank`` is below 1.
    """

    def __init__(
        self, hidden_size: int, layout: ParameterLayout, start: HeadInit, rank: int = 4
    ) -> None:
        super().__init__(hidden_size, layout, start)
        if rank < 1:
            raise UsageError(f"rank={rank}: give 1 or more")
        self.rank = rank
        self._matrices: list[tuple[int, int] | None] = []
        self._sizes: list[int] = []
        stds: list[float] = []
        for shape, std in zip(layout.real_shapes, start.row_stds, strict=True):
            rows, columns = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (0, 0)
            if rank * (rows + columns) < rows * columns:
                self._matrices.append((rows, columns))
                self._sizes += [rank * rows, rank * columns]
                stds += [std / math.sqrt(rank), 1 / math.sqrt(start.power)]
            else:
                self._matrices.append(None)
                self._sizes.append(shape.numel())
                stds.append(std)
        self.weight = nn.Parameter(torch.empty(sum(self._sizes), hidden_size))
        _initialize_rows(self.weight, self._sizes, stds)

    @property
    @override
    def factored_weight(self) -> nn.Parameter:
        return self.weight

    def forward(self, hidden: Float[Tensor, "K H"]) -> Float[Tensor, "K P"]:
        """Predict the factors and multiply them."""
        parts = iter(factored_linear(hidden, self.weight).split(self._sizes, dim=1))
        changes = []
        for matrix in self._matrices:
            change = next(parts)
            if matrix is not None:
                left = change.unflatten(1, (matrix[0], self.rank))
                right = next(parts).unflatten(1, (self.rank, matrix[1]))
                change = (left @ right).flatten(1)
            changes.append(change)
        return torch.cat(changes, dim=1)


class ChunkedHead(Head):
    """One small network predicts all matrices a chunk at a time, told which by a learned embedding.

    ``chunk = W3 LeakyReLU(W1 hidden + W2 embedding)``, of ``chunk_size`` numbers. Tensors of one
    dimension, which are few, are predicted densely.

    Source: von Oswald et al., "Continual Learning with Hypernetworks", 2020, Section 2.3.

    Args:
        hidden_size: Width H of the last hidden activation, and of the small network.
        layout: The predicted tensors.
        start: How it is initialized: so that each change has its target variance.
        chunk_size: Numbers a chunk, 1 or more.
        embedding_size: Width of the embeddings, 1 or more.

    Raises:
        UsageError: If a size is below 1.
    """

    scales: Tensor

    def __init__(
        self,
        hidden_size: int,
        layout: ParameterLayout,
        start: HeadInit,
        chunk_size: int = 4096,
        embedding_size: int = 32,
    ) -> None:
        super().__init__(hidden_size, layout, start)
        if chunk_size < 1 or embedding_size < 1:
            raise UsageError(
                f"chunk_size={chunk_size}, embedding_size={embedding_size}: give 1 or more"
            )
        is_matrix = [len(shape) > 1 for shape in layout.shapes.values()]
        self._is_matrix = is_matrix
        self._matrix_sizes = [s for s, m in zip(layout.sizes, is_matrix, strict=True) if m]
        self._vector_sizes = [s for s, m in zip(layout.sizes, is_matrix, strict=True) if not m]
        num_chunks = math.ceil(sum(self._matrix_sizes) / chunk_size)
        activation = nn.LeakyReLU()
        gain = activation_gain(activation)
        self.activation = activation
        self.embeddings = nn.Parameter(torch.empty(num_chunks, embedding_size))
        self.from_hidden = nn.Linear(hidden_size, hidden_size)
        self.from_embedding = nn.Linear(embedding_size, hidden_size, bias=False)
        self.to_chunk = nn.Linear(hidden_size, chunk_size, bias=False)
        self.vectors = nn.Parameter(torch.empty(sum(self._vector_sizes), hidden_size))
        # Hidden activation and embedding have each half of the variance 1 before the activation.
        nn.init.normal_(self.embeddings, std=1 / math.sqrt(embedding_size))
        nn.init.normal_(self.from_hidden.weight, std=math.sqrt(0.5 / start.power))
        nn.init.zeros_(self.from_hidden.bias)
        nn.init.normal_(self.from_embedding.weight, std=math.sqrt(0.5))
        std = 0.0 if start.zero else gain / math.sqrt(hidden_size)
        nn.init.normal_(self.to_chunk.weight, std=std)
        vector_stds = [s for s, m in zip(start.row_stds, is_matrix, strict=True) if not m]
        _initialize_rows(self.vectors, self._vector_sizes, vector_stds)
        targets = [t for t, m in zip(start.targets, is_matrix, strict=True) if m]
        self.register_buffer("scales", torch.tensor(targets).sqrt())

    def forward(self, hidden: Float[Tensor, "K H"]) -> Float[Tensor, "K P"]:
        """Predict the chunks, and put them and the tensors of one dimension in order."""
        told = self.from_hidden(hidden).unsqueeze(1) + self.from_embedding(self.embeddings)
        chunks = self.to_chunk(self.activation(told)).flatten(1)[:, : sum(self._matrix_sizes)]
        matrices = chunks.split(self._matrix_sizes, dim=1)
        scaled = iter([m * scale for m, scale in zip(matrices, self.scales.unbind(), strict=True)])
        vectors = iter(F.linear(hidden, self.vectors).split(self._vector_sizes, dim=1))
        return torch.cat([next(scaled if m else vectors) for m in self._is_matrix], dim=1)


@torch.no_grad()
def _initialize_rows(weight: Float[Tensor, "rows H"], sizes: list[int], stds: list[float]) -> None:
    for rows, std in zip(weight.split(sizes), stds, strict=True):
        if std:
            nn.init.normal_(rows, std=std)
        else:
            nn.init.zeros_(rows)
