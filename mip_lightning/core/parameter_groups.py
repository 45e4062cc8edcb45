"""The parts of a model whose optimizer options can differ."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias, get_args

from torch import nn
from torch.optim import Optimizer

from mip_lightning.errors import UsageError
from mip_lightning.hypernetworks.hypermodel import HyperModel

Part: TypeAlias = Literal["theta0", "ordinary", "trunk", "head"]
"""The independent weights, the parameters that are not predicted, the hypernetwork's encoding and
hidden layers, and its head."""

GroupOptions: TypeAlias = Mapping[Part, Mapping[str, float]]
"""Options of the optimizer for a part, such as ``{"theta0": {"lr": 1e-5}}``."""


def check_groups(options: GroupOptions) -> None:
    """Refuse options of what is no part.

    Raises:
        UsageError: If there is one.
    """
    for part in options:
        if part not in get_args(Part):
            raise UsageError(f"group_options: {part!r} is none of {', '.join(get_args(Part))}")


def parameter_groups(
    parameters: Iterable[nn.Parameter], model: HyperModel, options: GroupOptions
) -> list[dict[str, Any]]:
    """Trained parameters by part, as an optimizer takes them, with each part's options.

    Args:
        parameters: All parameters; what is not the hypermodel's counts as ordinary.
        model: The hypermodel.
        options: What differs for a part.
    """
    head = set(model.hypernetwork.head.parameters())
    members: dict[Part, set[nn.Parameter]] = {
        "theta0": set(model.theta0.values()),
        "trunk": set(model.hypernetwork.parameters()) - head,
        "head": head,
    }
    groups: dict[Part, list[nn.Parameter]] = {part: [] for part in get_args(Part)}
    for parameter in parameters:
        if parameter.requires_grad:
            parts = [part for part, inside in members.items() if parameter in inside]
            groups[parts[0] if parts else "ordinary"].append(parameter)
    return [
        {"name": part, "params": group, **options.get(part, {})}
        for part, group in groups.items()
        if group
    ]


def check_options(optimizer: Optimizer, options: GroupOptions) -> None:
    """Refuse options that an optimizer does not have, which PyTorch would keep and not use.

    Raises:
        UsageError: If there is one.
    """
    for part, given in options.items():
        for option in given:
            if option not in optimizer.defaults:
                raise UsageError(
                    f"group_options: {type(optimizer).__name__} has no {option!r} for {part}: it"
                    f" has {', '.join(optimizer.defaults)}"
                )
