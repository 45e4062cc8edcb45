"""What a task makes of a batch: its loss and predictions, or images for files."""

from typing import Any, NamedTuple

from jaxtyping import Float
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from mip_lightning.utilities.finite import has_nan, holds_numbers
from mip_lightning.utilities.nested import map_tensors, tensors_in
from mip_lightning.utilities.precision import at_least_float32


class StepOutput(NamedTuple):
    """What a task's ``loss`` returns if it has metrics.

    Attributes:
        loss: Mean over the batch.
        prediction: First argument of each metric's ``update``, detached: a tensor, or whatever
            they take; ``None`` for none.
        target: Second argument of each metric's ``update``: a tensor, or whatever they take.
    """

    loss: Float[Tensor, ""]
    prediction: Any = None
    target: Any = None

    def has_nan(self) -> Tensor:
        """Whether a prediction is NaN, shape ``()``.

        Predictions that are whole numbers never are: there the loss tells.
        """
        is_real = any(holds_numbers(tensor) for tensor in tensors_in([self.prediction]))
        return has_nan(self.prediction if is_real else self.loss)

    @classmethod
    def of(cls, output: "Tensor | StepOutput") -> "StepOutput":
        """What a task's ``loss`` returned, with predictions in float32, for metrics add them up."""
        if not isinstance(output, StepOutput):
            return cls(output)
        return output._replace(prediction=map_tensors(output.prediction, _in_float32))

    def detached(self) -> "StepOutput":
        """The same without the graph of the step, which would live as long as this."""
        detached = apply_to_collection(tuple(self), Tensor, Tensor.detach)
        return StepOutput(*detached)


class TrainingBatch(NamedTuple):
    """The gamma and the output of a training batch.

    Attributes:
        gamma: The draws, on the module's device.
        output: What the task said of the batch, without its graph.
    """

    gamma: Float[Tensor, "K D"]
    output: StepOutput


class Volume(NamedTuple):
    """An image that ``predict_step`` makes, for ``NiftiWriter``.

    Attributes:
        name: Path of its file, without suffix, in the folder of the predictions.
        values: Shape ``(*S)`` of 2 or 3 dimensions; of vectors, ``(*S, C)``.
        affine: From voxels to millimeters, shape ``(4, 4)``.
        is_vector: Whether each voxel holds a vector.
    """

    name: str
    values: Tensor
    affine: Float[Tensor, "4 4"]
    is_vector: bool = False


def _in_float32(tensor: Tensor) -> Tensor:
    return at_least_float32(tensor) if tensor.is_floating_point() else tensor
