"""HyperModel: a primary network whose weights a hypernetwork predicts.

``theta = theta0 + h(E(gamma); omega)``. theta0, the independent weights, are the primary's own
parameters; the formulations differ only in the encoding E and in how theta0 starts.
"""

import copy
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mip_lightning.errors import UsageError
from mip_lightning.functional.replica import unwatched
from mip_lightning.hypernetworks._initialization import (
    activation_gain,
    delta_variances,
    split_variance_with_theta0,
)
from mip_lightning.hypernetworks._parameter_layout import ParameterLayout, with_channels_as_in
from mip_lightning.hypernetworks._primary_call import PrimaryCall
from mip_lightning.hypernetworks._weight_norm import PredictedWeightNorm
from mip_lightning.hypernetworks.draws import DrawsConfig
from mip_lightning.hypernetworks.encodings import (
    EncodingType,
    IdentityEncoding,
    L2Encoding,
    make_encoding,
)
from mip_lightning.hypernetworks.gamma_argument import fix_gamma
from mip_lightning.hypernetworks.hypernetwork import Hypernetwork, HypernetworkConfig
from mip_lightning.hypernetworks.primary_at import PrimaryAtGamma
from mip_lightning.hypernetworks.selection import as_selection
from mip_lightning.hypernetworks.summary import Summary, summarize
from mip_lightning.hypernetworks.theta import ThetaConfig, load_pretrained
from mip_lightning.priors import Gamma, Prior
from mip_lightning.utilities.nested import Inputs, as_arguments

Formulation: TypeAlias = Literal["default", "input", "output", "mip"]
"""The paper's ablation: neither change, the input encoding, the output encoding, or both."""


class _Choice(NamedTuple):
    encoding: EncodingType
    keeps_theta0: bool


FORMULATIONS: dict[Formulation, _Choice] = {
    "default": _Choice(IdentityEncoding, keeps_theta0=False),
    "input": _Choice(L2Encoding, keeps_theta0=False),
    "output": _Choice(IdentityEncoding, keeps_theta0=True),
    "mip": _Choice(L2Encoding, keeps_theta0=True),
}


class HyperModel(nn.Module):
    """A primary network f(x; theta) with theta = theta0 + h(E(gamma); omega).

    Any module serves as the primary, as it is. Its predicted parameters become theta0: they keep
    their values where the formulation adds predictions to independent weights (``output``,
    ``mip``), so that a trained primary can be given, and start at zero otherwise. A parameter
    that is tied to others is predicted once for all of them.

    The primary is taken over, not copied: give a copy where it is needed elsewhere.

    Args:
        primary: The primary network.
        prior: p(gamma); sets the number of dimensions D and the range of the encoding.
        formulation: ``default``, ``input``, ``output`` or ``mip``.
        hypernetwork: Architecture of the hypernetwork.
        theta: Which parameters are predicted, and how theta0 starts.
        draws: Where the samples of a batch lie that K draws share, and how the draws are run.

    Raises:
        UsageError: If the primary has no parameters, the selection chooses nothing, the
            formulation is unknown, or the pretrained weights do not fit.

    Example::

        model = HyperModel(resnet18(), prior=Uniform(0, 1))
        y = model(x, gamma=torch.tensor([0.3]))         # one set of weights
        y = model(x, gamma=torch.rand(len(x), 1))       # one gamma a sample
        at = model.at(0.3)                              # the same for several calls: at(x)
        net = model.materialize(0.3)                    # an ordinary resnet18
    """

    def __init__(
        self,
        primary: nn.Module,
        prior: Prior,
        formulation: Formulation = "mip",
        hypernetwork: HypernetworkConfig = HypernetworkConfig(),
        theta: ThetaConfig = ThetaConfig(),
        draws: DrawsConfig = DrawsConfig(),
    ) -> None:
        super().__init__()
        if formulation not in FORMULATIONS:
            raise UsageError(
                f"formulation={formulation!r}: choose one of {', '.join(get_args(Formulation))}"
            )
        if isinstance(primary, torch.jit.ScriptModule):
            raise UsageError("primary is a TorchScript module: give the network it was made from")
        choice = FORMULATIONS[formulation]
        theta0 = as_selection(theta.predicted).select(primary)
        if theta.pretrained is not None:
            if not choice.keeps_theta0:
                raise UsageError(
                    f"pretrained={theta.pretrained!r}: theta0 starts at zero in formulation"
                    f" {formulation!r}; use mip or output"
                )
            load_pretrained(primary, theta.pretrained)
        self.layout = ParameterLayout(
            {name: p.shape for name, p in theta0.items()},
            frozenset(name for name, p in theta0.items() if p.is_complex()),
        )
        self._padding_rows = _padding_rows(primary, theta0)
        self.primary = primary
        self.prior = prior
        self.formulation = formulation
        # A copy only of what theta0 does not start from: else theta0 itself is it.
        starts_otherwise = not choice.keeps_theta0 or hypernetwork.scales_theta0
        kept = theta0 if starts_otherwise else {}
        self._given = {name: p.detach().clone() for name, p in kept.items()}
        self.weight_norm = PredictedWeightNorm(theta0) if theta.weight_norm else None
        if not choice.keeps_theta0:
            with torch.no_grad():
                for parameter in theta0.values():
                    parameter.zero_()
        if theta.frozen:
            for parameter in theta0.values():
                parameter.requires_grad_(False)
        encoding = make_encoding(prior, hypernetwork.encoding or choice.encoding)
        targets = _targets(self.layout, hypernetwork, theta0, theta.pretrained)
        self.hypernetwork = Hypernetwork(encoding, self.layout, hypernetwork, targets)
        without_vmap = (nn.RNNBase, HyperModel)  # a hypermodel in the primary checks its gamma
        self._primary_call = PrimaryCall(primary, self.layout, without_vmap, draws)

    @property
    def asks_for_gamma(self) -> bool:
        """Whether the primary's ``forward`` has an argument ``gamma``, which it then gets."""
        return self._primary_call.asks_for_gamma

    @property
    def theta0(self) -> dict[str, nn.Parameter]:
        """The independent weights: the primary's own parameters that are predicted, by name.

        Raises:
            UsageError: If the primary has lost one since, as by ``parametrize`` or ``prune``.
        """
        parameters = dict(self.primary.named_parameters())
        if lost := next((name for name in self.layout.shapes if name not in parameters), None):
            raise UsageError(
                f"primary: {lost} is not a parameter of {type(self.primary).__name__} any more:"
                " change its layers (parametrize, prune, LoRA) before a HyperModel is made of it"
            )
        return {name: parameters[name] for name in self.layout.shapes}

    def summary(self) -> Summary:
        """What is predicted, and what that takes; print it.

        It looks at shapes only. So a model that is built under ``torch.device("meta")`` tells what
        it would take before any memory is taken.
        """
        return summarize(self.primary, self.layout, self.hypernetwork)

    def forward(self, inputs: Inputs, gamma: Gamma) -> Any:
        """Run the primary with the weights predicted at gamma, as ``at(gamma)`` does.

        Args:
            inputs: A tensor ``(B, ...)``, or a tuple of positional or a mapping of keyword
                arguments of the primary.
            gamma: As in ``at``; K divides B.

        Raises:
            UsageError: As ``at`` and a call of what it gives.
        """
        args, kwargs = as_arguments(inputs)
        return self.at(gamma)(*args, **kwargs)

    def at(self, gamma: Gamma, *, check: bool = True) -> PrimaryAtGamma:
        """The primary with the weights predicted at gamma: call it, or look at its ``theta``.

        Args:
            gamma: A number (D = 1), shape ``(D,)``, or ``(K, D)`` for K draws.
            check: Whether to look at the values of gamma, which waits for the device that holds
                them. Values that the prior has sampled need no look, so that a training step never
                waits. Code compiled by ``torch.compile`` does not look: call ``prior.check`` first.

        Raises:
            UsageError: If gamma has another shape, is not finite, or lies outside the prior's
                support.
        """
        draws = self.prior.as_draws(gamma)
        if check and not torch.compiler.is_compiling():
            draws = self.prior.check_values(draws)
        is_one = getattr(gamma, "ndim", 0) != 2
        device = next(self.hypernetwork.parameters()).device
        return PrimaryAtGamma(draws, device, self._predict, self._primary_call, is_one)

    def _predict(self, gamma: Float[Tensor, "*K D"]) -> dict[str, Tensor]:
        """Predict the primary weights: name to ``(*shape)``, or to ``(K, *shape)``.

        They are formed in float32 under autocast too, for theta0 would lose in half precision
        what small predicted changes add to it. Gamma is encoded in float32 even where the weights
        are in half precision: there 0.999 is 1, and of 300 categories some are taken for others.
        """
        reference = next(self.hypernetwork.parameters())
        gamma = gamma.to(torch.promote_types(reference.dtype, torch.float32))
        watch = nullcontext() if torch.compiler.is_compiling() else unwatched()
        with watch, torch.autocast(reference.device.type, enabled=False):
            delta = self.hypernetwork(gamma if gamma.ndim == 2 else gamma.unsqueeze(0))
            parts = self.layout.split(delta if gamma.ndim == 2 else delta.squeeze(0))
            theta0 = self.theta0
            for name, row in self._padding_rows.items():
                parts[name] = _without_row(parts[name], row)
            theta = {
                name: with_channels_as_in(theta0[name], theta0[name] + part)
                for name, part in parts.items()
            }
            theta = theta if self.weight_norm is None else self.weight_norm(theta)
            return {name: weight.to(theta0[name].dtype) for name, weight in theta.items()}

    @torch.no_grad()
    def materialize(self, gamma: Gamma) -> nn.Module:
        """An ordinary network of the primary's class with the weights at one gamma.

        Args:
            gamma: A number (D = 1) or shape ``(D,)``.

        Returns:
            A copy of the primary that shares nothing with this model. Where its ``forward`` asks
            for gamma, it is called at this one unless it is given another.

        Raises:
            UsageError: If gamma is not one valid value.
        """
        draws = self.prior.check(gamma)
        if len(draws) != 1:
            raise UsageError(f"gamma holds {len(draws)} draws: materialize takes one")
        network = _copied(self.primary)
        theta = self.at(draws[0], check=False).theta
        parameters = dict(network.named_parameters())
        for name, value in theta.items():
            parameters[name].copy_(value)
        fix_gamma(network, draws[0])
        return network

    @torch.no_grad()
    def original_primary(self) -> nn.Module:
        """The primary before any weight was predicted: what it would be by itself.

        Where theta0 starts from the weights that were given, as in the formulation ``mip``, call it
        before training: these weights are then those of theta0 as it is now.

        Returns:
            A copy that shares nothing with this model; what is not predicted is as it is now.
        """
        network = _copied(self.primary)
        parameters = dict(network.named_parameters())
        for name, value in self._given.items():
            parameters[name].copy_(value)
        return network

    def describe(self) -> dict[str, str]:
        """What shapes of tensors do not tell of the model, in words that can be compared."""
        nameless = type(self.prior).__repr__ is object.__repr__
        return {
            "prior": type(self.prior).__name__ if nameless else str(self.prior),
            "encoding": type(self.hypernetwork.encoding).__name__,
            "head": type(self.hypernetwork.head).__name__,
            "trunk": " ".join(str(self.hypernetwork.trunk).split()),
        }


def _padding_rows(primary: nn.Module, theta0: dict[str, nn.Parameter]) -> dict[str, int]:
    """The row of padding of each predicted embedding that has one, which stays as it is."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in theta0.items()}
    return {
        names[module.weight]: module.padding_idx
        for module in primary.modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        and module.padding_idx is not None
        and module.weight in names
    }


def _without_row(part: Float[Tensor, "*K N E"], row: int) -> Float[Tensor, "*K N E"]:
    """The part with zeros in a row; without an index on the device, which a step would wait for."""
    middle = torch.zeros_like(part[..., row : row + 1, :])
    return torch.cat([part[..., :row, :], middle, part[..., row + 1 :, :]], dim=-2)


def _copied(network: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(network)
    except RuntimeError as error:
        raise UsageError(
            f"primary: {type(network).__name__} cannot be copied, for it keeps a computed tensor,"
            " as the old torch.nn.utils.weight_norm does: use torch.nn.utils.parametrizations"
        ) from error


def _targets(
    layout: ParameterLayout,
    config: HypernetworkConfig,
    theta0: dict[str, nn.Parameter],
    pretrained: str | None,
) -> dict[str, float]:
    """Variance that the change of each predicted tensor starts with."""
    gain = activation_gain(config.make_activation())
    targets = delta_variances(config.head_init, layout, gain, config.hidden_sizes[-1])
    if not config.scales_theta0:
        return targets
    if pretrained is not None:
        raise UsageError(
            f"head_init={config.head_init!r} scales theta0, which would change pretrained weights:"
            " use zero"
        )
    return split_variance_with_theta0(theta0, targets)
