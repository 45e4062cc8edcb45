"""What a user chooses of theta, the primary's weights; loading pretrained ones."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from mip_lightning.errors import UsageError
from mip_lightning.hypernetworks.selection import Selection
from mip_lightning.utilities.files import load_plain
from mip_lightning.utilities.finite import first_not_finite, trained_weights

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts keep the weights in a checkpoint."""


@dataclass(frozen=True)
class ThetaConfig:
    """What a user chooses of the primary's weights; by default all are predicted and trained.

    Args:
        predicted: Which parameters are predicted: a ``Selection``, or glob patterns on their
            names; by default all but the affine parameters of normalization layers. The others
            train as usual.
        pretrained: File of a trained primary, which theta0 starts from: a state_dict, or a
            checkpoint that holds one. With the hypernetwork's ``head_init: zero`` the model then
            computes the trained function at first, whatever gamma is.
        frozen: Leave theta0 as it is in training.
        weight_norm: Normalize the predicted weights, with learned norms (the paper's WeightNorm,
            a baseline).
        weight_decay: Add ``weight_decay / 2 * |theta|^2``, over the predicted weights and averaged
            over draws, to the training loss: a decay of the weights that are used, in place of
            the optimizer's decay of omega.

    Raises:
        UsageError: If ``weight_decay`` is negative.
    """

    predicted: Selection | Sequence[str] | None = None
    pretrained: str | None = None
    frozen: bool = False
    weight_norm: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not self.weight_decay >= 0:
            raise UsageError(f"weight_decay={self.weight_decay}: give 0 or more")


def load_pretrained(primary: nn.Module, path: str) -> None:
    """Load a trained primary's weights and buffers.

    Names may carry a prefix (``module.``, ``model.net.``), which is taken off; what a checkpoint
    holds under other names is not looked at.

    Args:
        primary: The network.
        path: A file of plain values: a state_dict, or a mapping that holds one.

    Raises:
        UsageError: If there is no such file, bytes of it have changed, names or shapes do not fit,
            or a weight is not finite.
    """
    found = _without_prefix(_read(path), primary.state_dict(), path)
    expected = primary.state_dict()
    for name, tensor in expected.items():
        if name not in found:
            near = difflib.get_close_matches(name, found, n=3, cutoff=0.3)
            hint = f"; near it are {', '.join(near)}" if near else ""
            raise UsageError(f"pretrained={path!r} has no {name!r}{hint}: give this network's file")
        if found[name].shape != tensor.shape:
            raise UsageError(
                f"pretrained={path!r}: {name} is {tuple(found[name].shape)} there,"
                f" {tuple(tensor.shape)} here: give this network's file"
            )
    for name in found:
        if name not in expected:
            raise UsageError(
                f"pretrained={path!r} holds {name!r}, which {type(primary).__name__} has not: give"
                " this network's file"
            )
    trained = {name: found[name] for name in trained_weights(primary)}
    if broken := first_not_finite(trained):
        raise UsageError(
            f"pretrained={path!r}: {broken} holds NaN or infinity: give weights that are finite"
        )
    primary.load_state_dict(found)


def _read(path: str) -> dict[str, Tensor]:
    content = load_plain(path, "pretrained")
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = (
        {name: value for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise UsageError(f"pretrained={path!r} holds no weights: save the network's state_dict()")
    return tensors


def _without_prefix(
    found: dict[str, Tensor], expected: Mapping[str, Tensor], path: str
) -> dict[str, Tensor]:
    """The tensors under the prefix that fits most of the expected names."""
    last = list(expected)[-1]
    prefixes = {"", *(name.removesuffix(last) for name in found if name.endswith(last))}
    fits = {p: sum(p + name in found for name in expected) for p in prefixes}
    best = sorted(p for p in prefixes if fits[p] == max(fits.values()))
    if len(best) > 1 and max(fits.values()) == len(expected):
        raise UsageError(
            f"pretrained={path!r} holds this network more than once, under {', '.join(best)}: save"
            " the one that is meant by itself"
        )
    return {n.removeprefix(best[0]): t for n, t in found.items() if n.startswith(best[0])}
