"""Hypernetworks with Magnitude Invariant Parametrizations (MIP) in PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mip_lightning import (
        callbacks,
        cli,
        core,
        data,
        diagnostics,
        functional,
        hypernetworks,
        networks,
        optim,
        priors,
        report,
        tasks,
        trainer,
        utilities,
    )
    from mip_lightning.core import (
        FromBatch,
        GammaSource,
        HyperLightningModule,
        LabelledMetric,
        StepOutput,
        Volume,
    )
    from mip_lightning.errors import (
        NonFiniteError,
        UsageError,
    )
    from mip_lightning.hypernetworks import (
        All,
        ByName,
        ByRegularExpression,
        ByType,
        ChunkedHead,
        ComplementEncoding,
        DenseHead,
        DirectionEncoding,
        DrawsConfig,
        Encoding,
        Head,
        HyperModel,
        Hypernetwork,
        HypernetworkConfig,
        IdentityEncoding,
        L2Encoding,
        LowRankHead,
        Selection,
        ThetaConfig,
    )
    from mip_lightning.optim import (
        FactoredAdam,
        FactoredAdamW,
        FactoredSGD,
    )
    from mip_lightning.priors import (
        Categorical,
        Dirichlet,
        EndPointOversampling,
        Joint,
        LogOddsUniform,
        LogUniform,
        Normal,
        Prior,
        SquareRootUniform,
        Stratified,
        Uniform,
        Values,
    )
    from mip_lightning.trainer import (
        HyperTrainer,
    )

__version__ = "0.1.0"

__all__ = [
    "All",
    "ByName",
    "ByRegularExpression",
    "ByType",
    "Categorical",
    "ChunkedHead",
    "ComplementEncoding",
    "DenseHead",
    "DirectionEncoding",
    "Dirichlet",
    "DrawsConfig",
    "Encoding",
    "EndPointOversampling",
    "FactoredAdam",
    "FactoredAdamW",
    "FactoredSGD",
    "FromBatch",
    "GammaSource",
    "Head",
    "HyperLightningModule",
    "HyperModel",
    "HyperTrainer",
    "Hypernetwork",
    "HypernetworkConfig",
    "IdentityEncoding",
    "Joint",
    "L2Encoding",
    "LabelledMetric",
    "LogOddsUniform",
    "LogUniform",
    "LowRankHead",
    "NonFiniteError",
    "Normal",
    "Prior",
    "Selection",
    "SquareRootUniform",
    "StepOutput",
    "Stratified",
    "ThetaConfig",
    "Uniform",
    "UsageError",
    "Values",
    "Volume",
    "callbacks",
    "cli",
    "core",
    "data",
    "diagnostics",
    "functional",
    "hypernetworks",
    "networks",
    "optim",
    "priors",
    "report",
    "tasks",
    "trainer",
    "utilities",
]

_HOMES = ("errors", "priors", "hypernetworks", "optim", "core", "trainer")
"""Where these names are, from what imports little to what imports much."""


def __getattr__(name: str) -> Any:
    """Import what is exported when it is first used (PEP 562).

    So ``mip-lightning --version`` waits neither for torch nor for Lightning.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name.islower():
        return import_module(f"{__name__}.{name}")
    homes = (import_module(f"{__name__}.{home}") for home in _HOMES)
    value = next(getattr(home, name) for home in homes if hasattr(home, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
