"""LightningDataModules, and sources of subjects: data that knows nothing of hypernetworks."""

from mip_lightning.data.decathlon import Decathlon
from mip_lightning.data.digits import Digits
from mip_lightning.data.image_pairs import ImagePairs
from mip_lightning.data.in_memory import InMemoryClassification
from mip_lightning.data.mnist import MNIST
from mip_lightning.data.oasis import OASIS2D
from mip_lightning.data.subjects import Subject, Subjects, SubjectSource
from mip_lightning.data.template_brains import TemplateBrains

__all__ = [
    "MNIST",
    "OASIS2D",
    "Decathlon",
    "Digits",
    "ImagePairs",
    "InMemoryClassification",
    "Subject",
    "SubjectSource",
    "Subjects",
    "TemplateBrains",
]
