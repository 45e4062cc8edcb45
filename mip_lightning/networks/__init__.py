"""The paper's primary networks: ordinary modules that know nothing of hypernetworks."""

from mip_lightning.networks.constant_width_unet import ConstantWidthUNet, ScaleSpaceUNet
from mip_lightning.networks.hypermorph_unet import HyperMorphUNet
from mip_lightning.networks.lenet import LeNet
from mip_lightning.networks.multilayer_perceptron import MultilayerPerceptron
from mip_lightning.networks.rescaling import as_factor, rescaled
from mip_lightning.networks.resnet_like import ResNetLike, ScaleSpaceResNet

__all__ = [
    "ConstantWidthUNet",
    "HyperMorphUNet",
    "LeNet",
    "MultilayerPerceptron",
    "ResNetLike",
    "ScaleSpaceResNet",
    "ScaleSpaceUNet",
    "as_factor",
    "rescaled",
]
