"""Callbacks: what weights, losses and metrics do over gamma. None imports a task."""

from mip_lightning.callbacks.base import HyperCallback
from mip_lightning.callbacks.best_checkpoint import BestCheckpoint
from mip_lightning.callbacks.channels_last import ChannelsLast
from mip_lightning.callbacks.cost_curve import CostCurve
from mip_lightning.callbacks.distributions import Distributions
from mip_lightning.callbacks.example_figures import ExampleFigures
from mip_lightning.callbacks.gamma_curve import GammaCurve
from mip_lightning.callbacks.gradient_stats import GradientStats
from mip_lightning.callbacks.hold_memory import HoldMemory
from mip_lightning.callbacks.hypermodel_summary import HyperModelSummary
from mip_lightning.callbacks.last_checkpoint import LastCheckpoint
from mip_lightning.callbacks.nifti_writer import NiftiWriter
from mip_lightning.callbacks.predicted_weight_stats import PredictedWeightStats
from mip_lightning.callbacks.prediction_writer import PredictionWriter
from mip_lightning.callbacks.run_progress_bar import RunProgressBar
from mip_lightning.callbacks.stop_on_signal import StopOnSignal, StoppedBySignal
from mip_lightning.callbacks.training_stability import TrainingStability
from mip_lightning.errors import NonFiniteError

__all__ = [
    "BestCheckpoint",
    "ChannelsLast",
    "CostCurve",
    "Distributions",
    "ExampleFigures",
    "GammaCurve",
    "GradientStats",
    "HoldMemory",
    "HyperCallback",
    "HyperModelSummary",
    "LastCheckpoint",
    "NiftiWriter",
    "NonFiniteError",
    "PredictedWeightStats",
    "PredictionWriter",
    "RunProgressBar",
    "StopOnSignal",
    "StoppedBySignal",
    "TrainingStability",
]
