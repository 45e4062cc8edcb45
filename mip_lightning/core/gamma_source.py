"""Where gamma comes from, if it is not sampled from the prior: the batch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mip_lightning.core.batches import batch_size
from mip_lightning.errors import UsageError
from mip_lightning.priors import Prior
from mip_lightning.utilities.precision import default_dtype


class GammaSource(ABC):
    """Tells the gamma of a batch: such as the voxel spacing of its images, or who labelled them.

    The prior still tells what gamma may be, and so how it is encoded: over its range by E_L2, a
    category by a learned vector (``Categorical``), a vector of any length by its direction
    (``HypernetworkConfig(encoding=DirectionEncoding)``).

    Attributes:
        sweeps_grid: Whether evaluation sweeps the prior's grid, as without a source; else it
            measures each sample at its own gamma.
    """

    sweeps_grid: bool = False

    @abstractmethod
    def __call__(self, batch: Any) -> Tensor:
        """The gamma of each sample of a batch, shape ``(B, D)``, or of all, shape ``(D,)``.

        Args:
            batch: What the data loader gives.
        """


class FromBatch(GammaSource):
    """Gamma is a part of the batch.

    Args:
        key: Its key in a mapping, its index in a sequence, or the name of an attribute. The part
            is numbers of shape ``(B, D)``, ``(B,)`` where D = 1, or ``(D,)`` for all samples.
        sweeps_grid: Whether evaluation sweeps the prior's grid.
    """

    def __init__(self, key: str | int, sweeps_grid: bool = False) -> None:
        self.key = key
        self.sweeps_grid = sweeps_grid

    def __call__(self, batch: Any) -> Tensor:
        """Look it up.

        Raises:
            UsageError: If the batch has no such part.
        """
        try:
            if isinstance(batch, Mapping) or isinstance(self.key, int):
                found = batch[self.key]
            else:
                found = getattr(batch, self.key)
        except (KeyError, IndexError, AttributeError, TypeError) as error:
            raise UsageError(
                f"gamma_source: a batch of type {type(batch).__name__} has no {self.key!r}"
                f"{_parts_of(batch)}"
            ) from error
        return torch.as_tensor(found)


class SeenOutside:
    """Whether gamma lay outside the prior's support, in steps that do not wait for the device."""

    def __init__(self) -> None:
        self._found: Tensor | None = None
        self._prior: Prior | None = None

    def update(self, gamma: Float[Tensor, "K D"], prior: Prior) -> None:
        """Note whether a value does."""
        outside = ~(prior.contains(gamma) & gamma.isfinite()).all()
        self._found = outside if self._found is None else self._found | outside
        self._prior = prior

    def check(self) -> None:
        """Look at what was noted, which waits for the device, and start again.

        Raises:
            UsageError: If a value did.
        """
        found, self._found = self._found, None
        if found is not None and bool(found):
            raise UsageError(
                f"gamma_source told a gamma outside the support of {self._prior} since the last"
                " epoch ended: give a prior that holds all of them"
            )


def gamma_of_batch(source: GammaSource, batch: Any, prior: Prior) -> Float[Tensor, "K D"]:
    """What a source tells, as draws: one for each sample, or one for all; values are not checked.

    Args:
        source: The source.
        batch: What the data loader gives.
        prior: Tells the number of dimensions D.

    Raises:
        UsageError: If the shape is another one.
    """
    size, found = batch_size(batch), source(batch)
    told = tuple(found.shape)
    if found.ndim == 1 and len(found) == size and (prior.dim == 1 or size != prior.dim):
        found = found.unsqueeze(1)
    if found.ndim == 1:
        found = found.unsqueeze(0)
    if found.ndim != 2 or found.shape[1] != prior.dim or len(found) not in (1, size):
        raise UsageError(
            f"gamma_source: gamma has shape {told} for {size} samples, and {prior} has"
            f" {prior.dim} dimension(s): give ({size}, {prior.dim}) or ({prior.dim},)"
        )
    return found if found.is_floating_point() else found.to(default_dtype())


def _parts_of(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f": it has {', '.join(map(repr, batch))}"
    return f": it has {len(batch)} parts" if isinstance(batch, Sequence) else ""
