"""The hyperparameters that a checkpoint keeps: plain values, for it loads with ``weights_only``."""

import warnings
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin


class _GivenHyperparameters(HyperparametersMixin):
    """Sees what Lightning's command line hands to every ``save_hyperparameters``."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)


def save_plain_hyperparameters(module: LightningModule, constructor: FrameType) -> None:
    """Save the arguments of a module's constructor, as far as they are plain values.

    The command line gives parsed, plain values for all of them. From Python come objects too, with
    which a checkpoint would not load with ``weights_only=True``.

    Args:
        module: The module.
        constructor: The frame of its ``__init__``, or of one that this calls.
    """
    if "_instantiator" in _GivenHyperparameters().hparams:
        module.save_hyperparameters(frame=constructor)
        return
    with warnings.catch_warnings():
        # Lightning says of modules that they had better be left out, as they are here.
        warnings.filterwarnings("ignore", ".*is an instance of `nn.Module`")
        module.save_hyperparameters(frame=constructor)
    for name in [name for name, value in module.hparams.items() if not _is_plain(value)]:
        del module.hparams[name]
    module.save_hyperparameters(dict(module.hparams))  # loggers get these


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(v) for pair in value.items() for v in pair)
    if isinstance(value, (list, tuple)):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str))
