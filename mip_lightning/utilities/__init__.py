"""Files, numbers, containers and modes: what knows of no other part of the library."""

from mip_lightning.utilities.files import (
    check_unchanged,
    first_free,
    load_plain,
    load_yaml,
    numbered,
    replacing,
)
from mip_lightning.utilities.finite import first_not_finite, has_nan, trained_weights
from mip_lightning.utilities.modes import eval_mode, preserve_modes
from mip_lightning.utilities.nested import Arguments, Inputs, as_arguments, map_tensors, tensors_in
from mip_lightning.utilities.norms import norm, total_norm
from mip_lightning.utilities.padding import centered
from mip_lightning.utilities.precision import at_least_float32, default_dtype, float32_by_default

__all__ = [
    "Arguments",
    "Inputs",
    "as_arguments",
    "at_least_float32",
    "centered",
    "check_unchanged",
    "default_dtype",
    "eval_mode",
    "first_free",
    "first_not_finite",
    "float32_by_default",
    "has_nan",
    "load_plain",
    "load_yaml",
    "map_tensors",
    "norm",
    "numbered",
    "preserve_modes",
    "replacing",
    "tensors_in",
    "total_norm",
    "trained_weights",
]
