"""Which samples of a batch a rank evaluates: each sample once, on whatever number of ranks."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DistributedSampler

from mip_lightning.draws import tensors_in
from mip_lightning.minibatch import batch_size


class EvaluatedSamples:
    """Leaves out the samples that a ``DistributedSampler`` repeats so that all ranks have as many.

    They are the last ones of a rank's, whatever their order. All ranks still run as many batches,
    so that none waits for another.
    """

    def __init__(self) -> None:
        self._position = 0

    def start(self) -> None:
        """Start from the first batch of an epoch."""
        self._position = 0

    def of(self, batch: Any, loaders: Any) -> Any | None:
        """A batch without repeated samples; ``None`` where no other ones are in it.

        Args:
            batch: What the data loader gives; called for each batch in turn.
            loaders: The trainer's data loader, or a list of it.
        """
        sampler = _sampler(loaders)
        if sampler is None or sampler.drop_last:
            return batch
        size = batch_size(batch)
        first, self._position = self._position, self._position + size
        dataset: Any = sampler.dataset
        own = len(range(sampler.rank, len(dataset), sampler.num_replicas))
        number = max(0, min(size, own - first))
        if number == size:
            return batch
        return first_samples(batch, number, size) if number else None


def _sampler(loaders: Any) -> DistributedSampler[Any] | None:
    if isinstance(loaders, (list, tuple)) and len(loaders) == 1:
        (loaders,) = loaders
    for owner in (loaders, getattr(loaders, "batch_sampler", None)):
        sampler = getattr(owner, "sampler", None)
        if isinstance(sampler, DistributedSampler):
            return sampler
    return None


def first_samples(value: Any, number: int, size: int) -> Any:
    """The first samples of a batch: of tensors, and of lists with an item for each sample.

    Args:
        value: A batch, or a part of one.
        number: How many.
        size: Number of samples in the batch.
    """
    if isinstance(value, Tensor):
        return value[:number] if value.ndim and len(value) == size else value
    if isinstance(value, Mapping):
        return {key: first_samples(part, number, size) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        tensors = [part for part in value if isinstance(part, Tensor)]
        is_of_fields = bool(tensors) and all(t.ndim and len(t) == size for t in tensors)
        if len(value) == size and not is_of_fields:
            return value[:number]
        parts = [first_samples(part, number, size) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if is_dataclass(value) and not isinstance(value, type):
        parts_by_name = {
            field.name: first_samples(getattr(value, field.name), number, size)
            for field in fields(value)
            if field.init
        }
        return replace(value, **parts_by_name)
    if next(tensors_in([value]), None) is None and not isinstance(value, (str, int, float)):
        rank_zero_warn(
            f"repeated samples cannot be left out of a {type(value).__name__}: evaluate on one rank"
        )
    return value
