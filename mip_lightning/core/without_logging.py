"""Calls of a task outside the trainer's loops, where Lightning would refuse to log."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import LightningModule


@contextmanager
def without_logging(module: LightningModule) -> Iterator[None]:
    """While it lasts, what a module logs goes nowhere: it belongs to no step of the trainer.

    Args:
        module: The module.
    """
    outer = vars(module).get("log")
    setattr(module, "log", lambda *args, **kwargs: None)  # noqa: B010  # mypy: a method stays one
    try:
        yield
    finally:
        delattr(module, "log")
        if outer is not None:
            setattr(module, "log", outer)  # noqa: B010
