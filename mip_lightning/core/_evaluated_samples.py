"""Which samples of a batch a rank evaluates: each sample once, on whatever number of ranks."""

from typing import Any

from torch.utils.data import DistributedSampler

from mip_lightning.core.batches import batch_size, take_samples


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

    def of(self, batch: Any, loader: Any) -> Any | None:
        """A batch without repeated samples; ``None`` where no other ones are in it.

        Args:
            batch: What the data loader gives; called for each batch in turn.
            loader: The data loader.
        """
        sampler = _sampler(loader)
        if sampler is None or sampler.drop_last:
            return batch
        size = batch_size(batch)
        first, self._position = self._position, self._position + size
        dataset: Any = sampler.dataset
        own = len(range(sampler.rank, len(dataset), sampler.num_replicas))
        number = max(0, min(size, own - first))
        if number == size:
            return batch
        return take_samples(batch, slice(number), size) if number else None


def _sampler(loader: Any) -> DistributedSampler[Any] | None:
    for owner in (loader, getattr(loader, "batch_sampler", None)):
        sampler = getattr(owner, "sampler", None)
        if isinstance(sampler, DistributedSampler):
            return sampler
    return None
