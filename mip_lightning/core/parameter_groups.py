"""The parameter groups of a model, whose optimizer options can differ."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias, get_args

from torch import nn
from torch.optim import Optimizer

from mip_lightning.errors import UsageError
from mip_lightning.hypernetworks.hypermodel import HyperModel

Group: TypeAlias = Literal["theta0", "ordinary", "trunk", "head"]
"""The independent weights, the parameters that are not predicted, the hypernetwork's encoding and
hidden layers, and its head."""

GroupOptions: TypeAlias = Mapping[Group, Mapping[str, float]]
"""Options of the optimizer for a group, such as ``{"theta0": {"lr": 1e-5}}``."""


def check_groups(options: GroupOptions) -> None:
    """Check that every key of ``group_options`` names a parameter group.

    Raises:
        UsageError: If one does not.
    """
    for name in options:
        if name not in get_args(Group):
            raise UsageError(f"group_options: {name!r} is none of {', '.join(get_args(Group))}")


def parameter_groups(
    parameters: Iterable[nn.Parameter], model: HyperModel, options: GroupOptions
) -> list[dict[str, Any]]:
    """Trained parameters by group, as an optimizer takes them, with each group's options.

    Args:
        parameters: All parameters; what is not the hypermodel's counts as ordinary.
        model: The hypermodel.
        options: What differs for a group.
    """
    head = set(model.hypernetwork.head.parameters())
    members: dict[Group, set[nn.Parameter]] = {
        "theta0": set(model.theta0.values()),
        "trunk": set(model.hypernetwork.parameters()) - head,
        "head": head,
    }
    groups: dict[Group, list[nn.Parameter]] = {name: [] for name in get_args(Group)}
    for parameter in parameters:
        if parameter.requires_grad:
            names = [name for name, inside in members.items() if parameter in inside]
            groups[names[0] if names else "ordinary"].append(parameter)
    return [
        {"name": name, "params": group, **options.get(name, {})}
        for name, group in groups.items()
        if group
    ]


def check_options(optimizer: Optimizer, options: GroupOptions) -> None:
    """Refuse options that an optimizer does not have, which PyTorch would keep and not use.

    Raises:
        UsageError: If there is one.
    """
    for name, given in options.items():
        for option in given:
            if option not in optimizer.defaults:
                raise UsageError(
                    f"group_options: {type(optimizer).__name__} has no {option!r} for {name}: it"
                    f" has {', '.join(optimizer.defaults)}"
                )


def restore_rates(optimizer: Optimizer, group_options: GroupOptions) -> None:
    """Give groups their own learning rates again, which a finder of the rate has overwritten."""
    for name, options in group_options.items():
        for group in optimizer.param_groups:
            if group.get("name") == name:
                group["lr"] = options.get("lr", group["lr"])
