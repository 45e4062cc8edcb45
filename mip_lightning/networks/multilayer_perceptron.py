"""A multilayer perceptron.

Not called ``MLP``: torchvision has one, and of two classes neither goes by its short name.
"""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn


class MultilayerPerceptron(nn.Module):
    """Fully connected layers with ReLU between them, on the flattened input.

    Args:
        in_features: Number of elements of one sample.
        num_classes: Number of outputs C.
        hidden_sizes: Widths of the hidden layers.
    """

    def __init__(
        self, in_features: int, num_classes: int = 10, hidden_sizes: Sequence[int] = (128,)
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width_out in pairwise([in_features, *hidden_sizes]):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        layers.append(nn.Linear([in_features, *hidden_sizes][-1], num_classes))
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Float[Tensor, "B *shape"]) -> Float[Tensor, "B classes"]:
        """Classify inputs of any shape that has ``in_features`` elements a sample."""
        logits: Tensor = self.layers(inputs)
        return logits
