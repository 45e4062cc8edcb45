"""The hyperparameters that a checkpoint keeps: plain values, for it loads with ``weights_only``."""

from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from lightning.pytorch.utilities.parsing import collect_init_args


class _GivenHyperparameters(HyperparametersMixin):
    """Sees what Lightning's command line hands to every ``save_hyperparameters``."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)


def save_plain_hyperparameters(module: LightningModule, constructor: FrameType) -> None:
    """Save the arguments of a module's constructor, as far as they are plain values.

    The command line gives parsed, plain values for all of them. From Python come objects too, with
    which a checkpoint would not load with ``weights_only=True``; Lightning would also copy them, a
    large primary with its weights.

    Args:
        module: The module.
        constructor: The frame of its ``__init__``, or of one that this calls.
    """
    if "_instantiator" in _GivenHyperparameters().hparams:
        module.save_hyperparameters(frame=constructor)
        return
    arguments: dict[str, Any] = {}
    for of_one_class in collect_init_args(constructor, [], classes=(HyperparametersMixin,)):
        arguments.update(of_one_class)
    objects = [name for name, value in arguments.items() if not _is_plain(value)]
    module.save_hyperparameters(ignore=objects, frame=constructor)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(v) for pair in value.items() for v in pair)
    if isinstance(value, (list, tuple)):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str))
