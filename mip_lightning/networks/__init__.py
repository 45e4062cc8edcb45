"""The paper's primary networks: ordinary modules that know nothing of hypernetworks."""

from mip_lightning.networks.constant_width_unet import ConstantWidthUNet
from mip_lightning.networks.hypermorph_unet import HyperMorphUNet
from mip_lightning.networks.lenet import LeNet
from mip_lightning.networks.multilayer_perceptron import MultilayerPerceptron

__all__ = ["ConstantWidthUNet", "HyperMorphUNet", "LeNet", "MultilayerPerceptron"]
