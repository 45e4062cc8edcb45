"""The evaluations of a module: one for each stage and data loader."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mip_lightning.core._evaluated_samples import EvaluatedSamples
from mip_lightning.core.evaluation import Evaluation, EvaluationResult, Stage
from mip_lightning.core.outputs import StepOutput
from mip_lightning.hypernetworks.primary_at import PrimaryAtGamma


class Evaluations:
    """What validation and test measure, on each of their data loaders.

    Args:
        make: Makes the evaluation of a stage at chosen gamma; at the prior's grid for ``None``.
    """

    def __init__(self, make: Callable[[Stage, Float[Tensor, "n D"] | None], Evaluation]) -> None:
        self._make = make
        self._chosen: dict[Stage, Tensor | None] = {}
        self._found: dict[tuple[Stage, int], Evaluation] = {}
        self._samples: dict[int, EvaluatedSamples] = defaultdict(EvaluatedSamples)

    def of(self, stage: Stage, loader: int = 0) -> Evaluation:
        """The evaluation of a stage on a data loader, which is made when it is first asked for."""
        if (stage, loader) not in self._found:
            self._found[stage, loader] = self._make(stage, self._chosen.get(stage))
        return self._found[stage, loader]

    def choose(self, stage: Stage, gammas: Float[Tensor, "n D"] | None) -> None:
        """Let a stage measure at some gamma; ``None`` for the prior's grid."""
        self._found.clear()
        self._chosen[stage] = gammas

    def start(self, stage: Stage, device: torch.device) -> None:
        """Reset all metrics; from now on the weights at each gamma are predicted once."""
        self._samples.clear()
        for key in [key for key in self._found if key[0] == stage and key[1]]:
            del self._found[key]  # there may be fewer loaders now
        self.of(stage).start(device)

    def update(
        self,
        stage: Stage,
        loader: int,
        batch: Any,
        of_loader: Any,
        device: torch.device,
        step_output: Callable[[Any, PrimaryAtGamma], StepOutput],
    ) -> None:
        """Add a batch, but for samples that ranks repeat.

        Args:
            stage: The stage.
            loader: Index of the data loader.
            batch: What it gives.
            of_loader: The data loader.
            device: The module's device.
            step_output: What the task makes of a batch and the primary.
        """
        is_first = (stage, loader) not in self._found
        evaluation = self.of(stage, loader)
        if is_first:
            evaluation.start(device)
        own = self._samples[loader].of(batch, of_loader)
        if own is not None:
            evaluation.update(own, step_output)

    def finish(
        self, stage: Stage, label_names: Mapping[int, str]
    ) -> Iterator[tuple[str, EvaluationResult]]:
        """Compute the results; each with what the names of its numbers end with."""
        for loader in sorted(loader for own, loader in self._found if own == stage):
            # Lightning's own ending would be taken off in the table that it prints.
            yield f"/loader_{loader}" if loader else "", self.of(stage, loader).finish(label_names)
