"""HyperModel: a primary network whose weights a hypernetwork predicts.

``theta = theta0 + h(E(gamma); omega)``. theta0, the independent weights, are the primary's own
parameters; the formulations differ only in the encoding E and in how theta0 starts.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from jaxtyping import Float
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.func import functional_call, vmap

from mip_lightning.draws import (
    Inputs,
    as_arguments,
    draws_dimension,
    join_draws,
    pick_draw,
    split_draws,
)
from mip_lightning.encodings import Encoding, IdentityEncoding, L2Encoding
from mip_lightning.errors import UsageError
from mip_lightning.hypernetwork import Hypernetwork, HypernetworkConfig
from mip_lightning.layout import ParameterLayout
from mip_lightning.priors import Prior

Formulation: TypeAlias = Literal["default", "input", "output", "mip"]
"""The paper's ablation: neither change, the input encoding, the output encoding, or both."""


class _Choice(NamedTuple):
    encoding: type[Encoding]
    keeps_theta0: bool


FORMULATIONS: dict[Formulation, _Choice] = {
    "default": _Choice(IdentityEncoding, keeps_theta0=False),
    "input": _Choice(L2Encoding, keeps_theta0=False),
    "output": _Choice(IdentityEncoding, keeps_theta0=True),
    "mip": _Choice(L2Encoding, keeps_theta0=True),
}


NORMALIZATION_LAYERS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
"""Layers whose affine parameters are not predicted but train as usual (paper, Section A.2)."""


class HyperModel(nn.Module):
    """A primary network f(x; theta) with theta = theta0 + h(E(gamma); omega).

    Any module serves as the primary, as it is. Its parameters become theta0: they keep their
    values where the formulation adds predictions to independent weights (``output``, ``mip``),
    so that a trained primary can be given, and start at zero otherwise. The affine parameters
    of normalization layers are not predicted.

    The primary is taken over, not copied: give a copy where it is needed elsewhere.

    Args:
        primary: The primary network.
        prior: p(gamma); sets the number of dimensions D and the range of the encoding.
        formulation: ``default``, ``input``, ``output`` or ``mip``.
        hypernetwork: Architecture of the hypernetwork.

    Raises:
        UsageError: If the primary has no parameters, or the formulation is unknown.

    Example::

        model = HyperModel(resnet18(), prior=Uniform(0, 1))
        y = model(x, gamma=torch.tensor([0.3]))         # one set of weights
        y = model(x, gamma=torch.rand(len(x), 1))       # one gamma a sample
        net = model.materialize(0.3)                    # an ordinary resnet18
    """

    def __init__(
        self,
        primary: nn.Module,
        prior: Prior,
        formulation: Formulation = "mip",
        hypernetwork: HypernetworkConfig = HypernetworkConfig(),
    ) -> None:
        super().__init__()
        if formulation not in FORMULATIONS:
            raise UsageError(
                f"formulation={formulation!r}: choose one of {', '.join(get_args(Formulation))}"
            )
        self.layout = ParameterLayout(
            {name: parameter.shape for name, parameter in _predicted(primary).items()}
        )
        if not self.layout.num_predicted:
            raise UsageError(
                f"primary={type(primary).__name__} has no parameters to predict: give a network"
                " with weights"
            )
        choice = FORMULATIONS[formulation]
        self.primary = primary
        self.prior = prior
        self.formulation = formulation
        encoding = (hypernetwork.encoding or choice.encoding)(prior)
        self.hypernetwork = Hypernetwork(encoding, self.layout, hypernetwork)
        if not choice.keeps_theta0:
            with torch.no_grad():
                for parameter in _predicted(primary).values():
                    parameter.zero_()

    def forward(self, inputs: Inputs, gamma: Tensor | float | Sequence[float]) -> Any:
        """Run the primary with the weights predicted at gamma.

        Values of gamma are checked, which waits for the device that holds them. Code compiled
        by ``torch.compile`` does not look at values: check them first with ``prior.check``.

        Args:
            inputs: A tensor ``(B, ...)``, or a tuple of positional or a mapping of keyword
                arguments of the primary.
            gamma: Shape ``(D,)``, or ``(K, D)`` where K divides B; sample i then uses draw
                ``i // (B / K)``.

        Returns:
            What the primary returns, for all B samples.

        Raises:
            UsageError: If gamma has another shape, is not finite, or lies outside the prior's
                support, or if K does not divide B.
        """
        draws = self.prior.as_draws(gamma)
        if not torch.compiler.is_compiling():
            draws = self.prior.check_values(draws)
        return self.run_at(draws, inputs)

    def run_at(self, gamma: Float[Tensor, "*K D"], inputs: Inputs) -> Any:
        """As ``forward``, without a look at the values of gamma, so that no device is waited for.

        Args:
            gamma: Shape ``(D,)`` or ``(K, D)``.
            inputs: As in ``forward``.
        """
        one = gamma.ndim == 2 and len(gamma) == 1
        return self.run(self.theta(gamma[0] if one else gamma), inputs)

    def theta(self, gamma: Float[Tensor, "*K D"]) -> dict[str, Tensor]:
        """Predict the primary weights, without a look at the values of gamma.

        They are formed in float32 under autocast too, for theta0 would lose in half precision
        what small predicted changes add to it.

        Args:
            gamma: Shape ``(D,)`` or ``(K, D)``.

        Returns:
            Name to ``(*shape)`` for gamma of shape ``(D,)``, to ``(K, *shape)`` for ``(K, D)``.
        """
        reference = self.hypernetwork.head.weight
        gamma = gamma.to(reference.device, reference.dtype, non_blocking=True)
        with torch.autocast(reference.device.type, enabled=False):
            delta = self.hypernetwork(gamma if gamma.ndim == 2 else gamma.unsqueeze(0))
            parts = self.layout.split(delta if gamma.ndim == 2 else delta[0])
            theta0 = dict(self.primary.named_parameters())
            return {name: theta0[name] + part for name, part in parts.items()}

    def run(self, theta: Mapping[str, Tensor], inputs: Inputs) -> Any:
        """Run the primary with given weights.

        Args:
            theta: Name to ``(*shape)`` or ``(K, *shape)``, as ``theta`` gives it.
            inputs: As in ``forward``; for K draws, each tensor in it is split into K groups.

        Returns:
            What the primary returns, for all samples.

        Raises:
            UsageError: If K does not divide the number of samples.
        """
        args, kwargs = as_arguments(inputs)
        name, first = next(iter(theta.items()))
        if first.ndim == len(self.layout.shapes[name]):
            return self._call(dict(theta), args, kwargs)
        num_draws = len(first)
        grouped_args = tuple(split_draws(value, num_draws) for value in args)
        grouped_kwargs = {name: split_draws(value, num_draws) for name, value in kwargs.items()}
        if self._may_write_buffers():
            return join_draws(
                [
                    self._call(
                        {name: t[k] for name, t in theta.items()},
                        tuple(pick_draw(value, k) for value in grouped_args),
                        {name: pick_draw(value, k) for name, value in grouped_kwargs.items()},
                    )
                    for k in range(num_draws)
                ]
            )
        in_dims = (
            0,
            tuple(draws_dimension(value) for value in args),
            {name: draws_dimension(value) for name, value in kwargs.items()},
        )
        output = vmap(self._call, in_dims, randomness="different")(
            dict(theta), grouped_args, grouped_kwargs
        )
        return apply_to_collection(output, Tensor, lambda t: t.flatten(0, 1) if t.ndim > 1 else t)

    @torch.no_grad()
    def materialize(self, gamma: Tensor | float | Sequence[float]) -> nn.Module:
        """An ordinary network of the primary's class with the weights at one gamma.

        Args:
            gamma: A number (D = 1) or shape ``(D,)``.

        Returns:
            A copy of the primary that shares nothing with this model.

        Raises:
            UsageError: If gamma is not one valid value.
        """
        gamma = self.prior.check(gamma)
        if len(gamma) != 1:
            raise UsageError(f"gamma holds {len(gamma)} draws: materialize takes one")
        network = copy.deepcopy(self.primary)
        theta = self.theta(gamma[0])
        for name, parameter in _predicted(network).items():
            parameter.copy_(theta[name])
        return network

    def describe(self) -> dict[str, str]:
        """What shapes of tensors do not tell of the model, in words that can be compared."""
        nameless = type(self.prior).__repr__ is object.__repr__
        return {
            "prior": type(self.prior).__name__ if nameless else str(self.prior),
            "encoding": type(self.hypernetwork.encoding).__name__,
            "trunk": " ".join(str(self.hypernetwork.trunk).split()),
        }

    def _call(self, theta: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return functional_call(self.primary, theta, args, kwargs)

    def _may_write_buffers(self) -> bool:
        """Whether a call may write buffers (running statistics), which ``vmap`` cannot do."""
        return any(
            module.training and next(module.buffers(recurse=False), None) is not None
            for module in self.primary.modules()
        )


def _predicted(primary: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are predicted, by name; tied ones once."""
    ordinary = {
        parameter
        for module in primary.modules()
        if isinstance(module, NORMALIZATION_LAYERS)
        for parameter in module.parameters(recurse=False)
    }
    return {name: p for name, p in primary.named_parameters() if p not in ordinary}
