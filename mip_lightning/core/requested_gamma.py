"""The gamma that a user asks a command for: values, or the file that ``select-gamma`` wrote."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mip_lightning.errors import UsageError
from mip_lightning.priors import Gamma, Prior
from mip_lightning.utilities.files import load_yaml
from mip_lightning.utilities.precision import default_dtype

GammaRequest: TypeAlias = float | str | list[float] | list[list[float]] | dict[str, Any] | Path
"""A value of gamma; several (a list where D = 1, else a list of lists); or the path of a ``.yaml``
file that ``select-gamma`` wrote."""

ALL, LABEL, SUBJECT = "all", "label", "subject"


class RequestedGamma:
    """Values of gamma for every sample, or for each its own.

    Args:
        prior: The prior, which checks them.
        request: What the user gives.

    Raises:
        UsageError: If a value is none of the prior's, or the file is none of ``select-gamma``.
    """

    def __init__(self, prior: Prior, request: GammaRequest) -> None:
        self.request = request
        self._named: dict[str, Tensor] = {}
        self._shared: Tensor | None = None
        if isinstance(request, Path) or _names_a_file(request):
            by, gamma = _read(Path(request))
            if by == ALL:
                self._shared = prior.check(_as_numbers(gamma))
            else:
                self._named = {
                    name: prior.check(_as_numbers(value)) for name, value in gamma.items()
                }
            if by == LABEL:
                self._shared = self.unique
        elif isinstance(request, list) and prior.dim == 1:
            self._shared = prior.check(torch.tensor(request).reshape(-1, 1))
        else:
            self._shared = prior.check(cast(Gamma, request))

    @property
    def shared(self) -> Float[Tensor, "K D"]:
        """The values for every sample.

        Raises:
            UsageError: If each sample has its own.
        """
        if self._shared is None:
            raise UsageError(
                f"gamma={self.request!r} holds a gamma for each subject, and here one is needed for"
                " all: run select-gamma --by all"
            )
        return self._shared

    @property
    def unique(self) -> Float[Tensor, "K D"]:
        """All values that were asked for, each once."""
        if self._shared is not None:
            return self._shared
        return torch.cat(list({tuple(v[0].tolist()): v for v in self._named.values()}.values()))

    def names_at(self, gamma: Float[Tensor, " D"]) -> list[str]:
        """The labels or subjects for which a value was selected; none if it was for all."""
        return [name for name, value in self._named.items() if torch.equal(value[0], gamma)]

    @property
    def single(self) -> Float[Tensor, "1 D"]:
        """The one value.

        Raises:
            UsageError: If there are several.
        """
        if len(self.shared) != 1:
            raise UsageError(f"gamma={self.request!r} holds {len(self.shared)} values: give one")
        return self.shared

    def of_sample(self, name: str) -> Float[Tensor, "K D"]:
        """The values for a sample.

        Raises:
            UsageError: If each sample has its own, and this one none.
        """
        if self._shared is not None:
            return self._shared
        if name not in self._named:
            known = next(iter(self._named), "none")
            raise UsageError(
                f"gamma={self.request!r} has no gamma for {name!r} (but for {known!r}): it was"
                " selected on other subjects; predict those on which it was (--data.predict_on val)"
            )
        return self._named[name]


def _names_a_file(request: GammaRequest) -> TypeGuard[str]:
    return isinstance(request, str) and Path(request).suffix in (".yaml", ".yml")


def _as_numbers(value: Any) -> Tensor | float:
    return torch.tensor(value, dtype=default_dtype()) if isinstance(value, list) else float(value)


def _read(path: Path) -> tuple[str, Any]:
    content = load_yaml(path, "gamma")
    if not isinstance(content, Mapping) or not {"by", "gamma"} <= content.keys():
        raise UsageError(
            f"gamma={str(path)!r} is not a file that select-gamma wrote: it lacks by, gamma"
        )
    by, gamma = content["by"], content["gamma"]
    if by not in (ALL, LABEL, SUBJECT) or isinstance(gamma, Mapping) != (by != ALL) or gamma == {}:
        raise UsageError(f"gamma={str(path)!r} is not a file that select-gamma wrote: by={by!r}")
    return by, gamma
