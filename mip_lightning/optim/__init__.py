"""Optimizers that update a weight from the factors of its gradient."""

from mip_lightning.optim.optimizers import (
    FACTORED,
    FactoredAdam,
    FactoredAdamW,
    FactoredSGD,
    describe_update,
)

__all__ = [
    "FACTORED",
    "FactoredAdam",
    "FactoredAdamW",
    "FactoredSGD",
    "describe_update",
]
