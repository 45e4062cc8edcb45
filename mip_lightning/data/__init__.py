"""LightningDataModules, and sources of subjects: data that knows nothing of hypernetworks."""

from mip_lightning.data.classification import InMemoryClassification
from mip_lightning.data.decathlon import Decathlon
from mip_lightning.data.digits import Digits
from mip_lightning.data.flowers102 import Flowers102
from mip_lightning.data.image_folders import ImageFolders
from mip_lightning.data.image_pairs import ImagePairs
from mip_lightning.data.mnist import MNIST
from mip_lightning.data.oasis import OASIS2D
from mip_lightning.data.photographs import LabelledFiles, Photographs
from mip_lightning.data.segmented_images import SegmentedImages
from mip_lightning.data.subjects import Subject, Subjects, SubjectSource
from mip_lightning.data.template_brains import TemplateBrains

__all__ = [
    "MNIST",
    "OASIS2D",
    "Decathlon",
    "Digits",
    "Flowers102",
    "ImageFolders",
    "ImagePairs",
    "InMemoryClassification",
    "LabelledFiles",
    "Photographs",
    "SegmentedImages",
    "Subject",
    "SubjectSource",
    "Subjects",
    "TemplateBrains",
]
