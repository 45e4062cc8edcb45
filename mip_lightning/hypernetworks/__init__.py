"""HyperModel and its parts: encodings, trunk, heads, selection of parameters, the call."""

from mip_lightning.hypernetworks.draws import DrawsConfig, PerDraw
from mip_lightning.hypernetworks.encodings import (
    CategoryEncoding,
    ComplementEncoding,
    DirectionEncoding,
    Encoding,
    EncodingType,
    IdentityEncoding,
    JointEncoding,
    L2Encoding,
    SimplexEncoding,
)
from mip_lightning.hypernetworks.gamma_argument import GammaArgument, fix_gamma
from mip_lightning.hypernetworks.heads import ChunkedHead, DenseHead, Head, HeadType, LowRankHead
from mip_lightning.hypernetworks.hypermodel import Formulation, HyperModel
from mip_lightning.hypernetworks.hypernetwork import Hypernetwork, HypernetworkConfig
from mip_lightning.hypernetworks.primary_at import PrimaryAtGamma
from mip_lightning.hypernetworks.selection import (
    All,
    ByName,
    ByRegularExpression,
    ByType,
    Selection,
)
from mip_lightning.hypernetworks.summary import Summary, summarize
from mip_lightning.hypernetworks.theta import ThetaConfig

__all__ = [
    "All",
    "ByName",
    "ByRegularExpression",
    "ByType",
    "CategoryEncoding",
    "ChunkedHead",
    "ComplementEncoding",
    "DenseHead",
    "DirectionEncoding",
    "DrawsConfig",
    "Encoding",
    "EncodingType",
    "Formulation",
    "GammaArgument",
    "Head",
    "HeadType",
    "HyperModel",
    "Hypernetwork",
    "HypernetworkConfig",
    "IdentityEncoding",
    "JointEncoding",
    "L2Encoding",
    "LowRankHead",
    "PerDraw",
    "PrimaryAtGamma",
    "Selection",
    "SimplexEncoding",
    "Summary",
    "ThetaConfig",
    "fix_gamma",
    "summarize",
]
