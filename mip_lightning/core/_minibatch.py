"""One training or evaluation step: its size, its gamma and weights, what the task says of it."""

import copy
from collections.abc import Callable, MutableMapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_warn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from mip_lightning.errors import UsageError
from mip_lightning.hypernetworks.hypermodel import HyperModel
from mip_lightning.utilities.finite import has_nan
from mip_lightning.utilities.nested import Inputs, tensors_in

MIN_CACHED_WEIGHTS = 2**24
"""Numbers of predicted weights that an evaluation keeps at any rate: 64 MB."""


class StepOutput(NamedTuple):
    """What a task's ``loss`` returns if it has metrics.

    Attributes:
        loss: Mean over the batch.
        prediction: First argument of each metric's ``update``, detached.
        target: Second argument of each metric's ``update``: a tensor, or whatever they take.
    """

    loss: Float[Tensor, ""]
    prediction: Tensor | None = None
    target: Any = None

    def has_nan(self) -> Tensor:
        """Whether a prediction is NaN, shape ``()``.

        Predictions that are whole numbers never are: there the loss tells.
        """
        is_real = any(tensor.is_floating_point() for tensor in tensors_in([self.prediction]))
        return has_nan(self.prediction if is_real else self.loss)

    def detached(self) -> "StepOutput":
        """The same without the graph of the step, which would live as long as this."""
        detached = apply_to_collection(tuple(self), Tensor, Tensor.detach)
        return StepOutput(*detached)


class Volume(NamedTuple):
    """An image that ``predict_step`` makes, for ``NiftiWriter``.

    Attributes:
        name: Path of its file, without suffix, in the folder of the predictions.
        values: Shape ``(*S)`` of 2 or 3 dimensions; of vectors, ``(*S, C)``.
        affine: From voxels to millimetres, shape ``(4, 4)``.
        is_vector: Whether each voxel holds a vector.
    """

    name: str
    values: Tensor
    affine: Float[Tensor, "4 4"]
    is_vector: bool = False


class DrawnGamma:
    """A gamma that need not be checked, and the weights at it once they are asked for.

    Args:
        gamma: The draws.
        raw: The draws on the CPU, for primaries that ask for gamma; by default copied there when
            first needed, which waits for the device.
    """

    def __init__(
        self, gamma: Float[Tensor, "K D"], raw: Float[Tensor, "K D"] | None = None
    ) -> None:
        self.gamma = gamma
        self._raw = raw
        self._theta: dict[str, Tensor] | None = None
        self._has_graph = False
        self._call: Callable[[Inputs], Any] | None = None

    def run(self, model: HyperModel, inputs: Inputs) -> Any:
        """Run the primary at it.

        Args:
            model: The model.
            inputs: As in ``HyperModel.forward``.
        """
        if model.asks_for_gamma and self._raw is None:
            self._raw = self.gamma.cpu()
        if torch.is_grad_enabled() or len(self.gamma) > 1 or model.training:
            return model.run(self.theta(model), inputs, self._raw)
        if self._call is None:  # in evaluation, where the mode stays
            self._call = model.bound(self.theta(model), self._raw)
        return self._call(inputs)

    def theta(self, model: HyperModel) -> dict[str, Tensor]:
        """The weights, predicted once; once more if their gradient is wanted later."""
        if self._theta is None or (torch.is_grad_enabled() and not self._has_graph):
            self._theta = model.theta_at(self.gamma)
            self._has_graph = torch.is_grad_enabled()
        return self._theta


class EvaluationDraws:
    """The gamma of one evaluation epoch: the weights at each are predicted once, not once a batch.

    Caches at most max(hypernetwork size, ``MIN_CACHED_WEIGHTS``) numbers; weights beyond that are
    predicted again for every batch. It caches nothing outside an epoch, for weights may change
    there. After an interrupted epoch, it caches nothing once they have.
    """

    def __init__(self) -> None:
        self._room = 0
        self._versions: list[int] = []
        self._kept: dict[int, tuple[Tensor, list[DrawnGamma]]] = {}

    def start(self, model: HyperModel) -> None:
        """Keep what is predicted from now on."""
        parameters = sum(p.numel() for p in model.hypernetwork.parameters())
        self._room = max(parameters, MIN_CACHED_WEIGHTS) // model.layout.num_predicted
        self._versions = _versions(model)
        self._kept = {}

    def stop(self) -> None:
        """Keep nothing."""
        self._room = 0
        self._kept = {}

    def of(self, model: HyperModel, gammas: Float[Tensor, "n D"]) -> list[DrawnGamma]:
        """Each value by itself.

        Args:
            model: The model.
            gammas: The values, in the same tensor for every batch.
        """
        if self._room + len(self._kept) and self._versions != _versions(model):
            self.stop()
        if id(gammas) in self._kept:
            kept = self._kept[id(gammas)][1]
            return kept + [DrawnGamma(gamma) for gamma in gammas.split(1)[len(kept) :]]
        draws = [DrawnGamma(gamma) for gamma in gammas.split(1)]
        kept = draws[: self._room]
        self._room -= len(kept)
        self._kept[id(gammas)] = (gammas, kept)  # the tensor too, so that its id stays its own
        return draws


def _versions(model: HyperModel) -> list[int]:
    """How often each weight was changed in place."""
    return [weight._version for weight in model.parameters() if not weight.is_inference()]


def batch_size(batch: Any) -> int:
    """Number of samples: the length of the first tensor in a batch.

    Raises:
        UsageError: If the batch holds no tensor.
    """
    for tensor in tensors_in(batch):
        return len(tensor)
    raise UsageError(f"a batch of type {type(batch).__name__} holds no tensor to count samples by")


def take_samples(value: Any, which: slice, size: int) -> Any:
    """Some samples of a batch: of tensors, arrays, and lists with an item for each sample.

    Args:
        value: A batch, or a part of one.
        which: The samples.
        size: Number of samples in the batch.
    """
    if isinstance(value, (Tensor, np.ndarray)):
        return value[which] if value.ndim and len(value) == size else value
    if isinstance(value, MutableMapping):
        some = copy.copy(value)  # of its own type
        some.update({key: take_samples(part, which, size) for key, part in value.items()})
        return some
    if isinstance(value, (list, tuple)):
        tensors = [part for part in value if isinstance(part, Tensor)]
        is_of_fields = bool(tensors) and all(t.ndim and len(t) == size for t in tensors)
        if len(value) == size and not is_of_fields:
            return value[which]
        parts = [take_samples(part, which, size) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        return replace(value, **{k: take_samples(part, which, size) for k, part in own.items()})
    if not isinstance(value, (str, int, float, type(None))):
        rank_zero_warn(
            f"samples cannot be taken from a {type(value).__name__}: all in it count, those that"
            " ranks repeat too"
        )
    return value
