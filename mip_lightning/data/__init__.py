"""LightningDataModules: ordinary data that knows nothing of hypernetworks."""

from mip_lightning.data.digits import Digits
from mip_lightning.data.in_memory import InMemoryClassification
from mip_lightning.data.mnist import MNIST

__all__ = ["MNIST", "Digits", "InMemoryClassification"]
