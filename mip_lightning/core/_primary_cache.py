"""PrimaryCache: the primary at several gamma, whose weights are predicted once an epoch."""

from jaxtyping import Float
from torch import Tensor

from mip_lightning.hypernetworks.hypermodel import HyperModel
from mip_lightning.hypernetworks.primary_at import PrimaryAtGamma

MIN_CACHED_WEIGHTS = 2**24
"""Numbers of predicted weights that an evaluation keeps at any rate: 64 MB."""


class PrimaryCache:
    """The primary at each gamma that is asked for, with weights that serve all batches of an epoch.

    Caches at most max(hypernetwork size, ``MIN_CACHED_WEIGHTS``) numbers; weights beyond that are
    predicted again for every batch. It caches nothing outside an epoch, for weights may change
    there. After an interrupted epoch, it caches nothing once they have.

    Args:
        model: The model.
    """

    def __init__(self, model: HyperModel) -> None:
        self._model = model
        self._room = 0
        self._versions: list[int] = []
        self._kept: dict[tuple[float, ...], PrimaryAtGamma] = {}

    def start(self) -> None:
        """Keep what is predicted from now on."""
        size = sum(p.numel() for p in self._model.hypernetwork.parameters())
        self._room = max(size, MIN_CACHED_WEIGHTS) // self._model.layout.num_predicted
        self._versions = self._weight_versions()
        self._kept = {}

    def stop(self) -> None:
        """Keep nothing."""
        self._room = 0
        self._kept = {}

    def __call__(self, gammas: Float[Tensor, "n D"]) -> list[PrimaryAtGamma]:
        """The primary at each value, with the weights of one gamma.

        Args:
            gammas: The values, which are not checked. Keep them on the CPU: elsewhere each call
                waits for the device.
        """
        if self._room + len(self._kept) and self._versions != self._weight_versions():
            self.stop()
        return [self._at(gamma) for gamma in gammas.cpu().split(1)]

    def _at(self, gamma: Float[Tensor, "1 D"]) -> PrimaryAtGamma:
        key = tuple(gamma.flatten().tolist())
        primary = self._kept.get(key) or self._model.at(gamma, check=False)
        if self._room > 0 and key not in self._kept:
            self._kept[key] = primary
            self._room -= 1
        return primary

    def _weight_versions(self) -> list[int]:
        """How often each weight was changed in place."""
        # Private by name; torch documents it for custom autograd. Inference tensors have none.
        return [w._version for w in self._model.parameters() if not w.is_inference()]
