"""A training step: forward pass, loss, backward pass and optimizer."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from benchmarks.memory import with_peak
from benchmarks.timing import Contestant, Row, device, race, report
from mip_lightning import HyperModel, HypernetworkConfig, Uniform
from mip_lightning.hypernetworks.hypermodel import Formulation
from mip_lightning.networks import ConstantWidthUNet, LeNet, ResNetLike
from mip_lightning.optim.optimizers import FactoredAdam

Forward: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From a batch and a gamma to an output."""

Change: TypeAlias = Callable[[Forward], Forward]

HIDDEN_SIZES = (16, 128)
LEARNING_RATE = 1e-4

PASSES = 8
"""How often a step has to go over the head's weight: it is read in the forward and in the backward
pass, and weight and both moments are read and written by the optimizer."""


COPIED_NUMBERS = 2**26
"""Numbers that are copied to measure how fast memory is: 256 MB, more than any cache."""


@dataclass(frozen=True)
class Case:
    """A network and the batch it is trained on."""

    name: str
    network: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int


def cases(small: bool) -> list[Case]:
    """The networks and batches that are timed."""
    size = (32, 32) if small else (160, 192)
    listed = [
        Case("LeNet", LeNet, (1, 28, 28), 64),
        Case("U-Net", ConstantWidthUNet, (2, *size), 1),
        Case("U-Net", ConstantWidthUNet, (2, *size), 8),
        Case("ResNet-like", ResNetLike, (3, 128, 128), 32),
    ]
    return [replace(case, batch=min(case.batch, 2)) for case in listed[:2]] if small else listed


def run(
    rounds: int = 30, memory: bool = True, small: bool = False, out: Path | None = None
) -> None:
    """Training steps of the primary by itself and of hypernetworks over it.

    ``plain`` is the primary with a fused Adam. ``default`` and ``mip`` are this library's
    formulations, ``mip-written-out`` is ``mip`` with torch's fused Adam, which has the head's
    gradient written out. ``hyperlight-adam`` and ``hyperlight-fused`` are the package hyperlight
    with torch's Adam as it is by default, and fused. All have hidden layers of 16 and 128.
    ``bound`` is not a network, but the time of ``plain`` and that of the bytes of the head that
    have to be moved, at the speed of a copy of memory that no cache holds.

    Args:
        rounds: Number of rounds.
        memory: Measure the peak memory too, each contestant in a process of its own.
        small: Small images and batches, to see whether it runs.
        out: A CSV file for the figures.
    """
    rows: list[Row] = []
    for index, case in enumerate(cases(small)):
        contestants = {name: _contestant(name, case) for name in CONTESTANTS}
        source = torch.zeros(COPIED_NUMBERS, device=device())
        target = torch.empty_like(source)
        race_rows = race(
            case.name,
            case.batch,
            {**contestants, "copy": lambda s=source, t=target: t.copy_(s)},  # type: ignore[misc]
            rounds,
        )
        del contestants, source, target
        *timed, copy = race_rows
        rows += [
            replace(row, peak_mb=with_peak(_step_once, row.contestant, index, small)[1])
            if memory
            else row
            for row in timed
        ]
        rows.append(_bound(case, timed[0], copy))
    report("A training step", rows, "plain", out)


_CONFIG = HypernetworkConfig(hidden_sizes=HIDDEN_SIZES)


def _bound(case: Case, plain: Row, copy: Row) -> Row:
    """A copy reads and writes its numbers once, which is two passes."""
    with torch.device("meta"):
        head = HyperModel(case.network(), Uniform(), hypernetwork=_CONFIG).hypernetwork.head
    copies = PASSES / 2 * sum(p.numel() for p in head.parameters()) / COPIED_NUMBERS
    return Row(
        plain.network,
        plain.batch,
        "bound",
        plain.median_ms + copies * copy.median_ms,
        plain.spread_ms + copies * copy.spread_ms,
    )


def _step_once(name: str, index: int, small: bool) -> None:
    step = _contestant(name, cases(small)[index])
    for _ in range(2):  # the first one makes the optimizer's moments
        step()


def _contestant(name: str, case: Case) -> Contestant:
    torch.manual_seed(0)
    return CONTESTANTS[name](case)


def _stepper(
    case: Case,
    forward: Forward,
    optimizer: torch.optim.Optimizer,
) -> Contestant:
    """A step of a forward pass that takes a batch and a gamma of shape ``(1, 1)``."""
    place = device()
    batch = torch.rand(case.batch, *case.shape, device=place)
    with torch.no_grad():  # the target is out of reach, so that gradients do not vanish
        target = torch.randn_like(forward(batch, torch.rand(1, 1, device=place)))

    def step() -> None:
        optimizer.zero_grad()
        gamma = torch.rand(1, 1, device=place)
        (forward(batch, gamma) - target).square().mean().backward()
        optimizer.step()

    return step


def plain(case: Case, change: Change = lambda forward: forward) -> Contestant:
    """A step of the primary by itself.

    Args:
        case: The network and its batch.
        change: What is done to the forward pass, such as to compile it.
    """
    network = case.network().to(device())
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)
    return _stepper(case, change(lambda batch, gamma: network(batch)), optimizer)


def ours(
    case: Case,
    formulation: Formulation = "mip",
    optimizer: Callable[..., torch.optim.Optimizer] = FactoredAdam,
    change: Change = lambda forward: forward,
) -> Contestant:
    """A step of a hypermodel.

    Args:
        case: The network and its batch.
        formulation: The formulation.
        optimizer: The optimizer's class.
        change: What is done to the forward pass, such as to compile it.
    """
    model = HyperModel(case.network(), Uniform(), formulation, _CONFIG).to(device())
    return _stepper(
        case,
        change(lambda batch, gamma: model.at(gamma, check=False)(batch)),
        optimizer(model.parameters(), lr=LEARNING_RATE, fused=True),
    )


def _hyperlight(case: Case, fused: bool) -> Contestant:
    try:
        hyperlight = importlib.import_module("hyperlight")
    except ImportError:
        raise SystemExit(
            "benchmarks step: compares with hyperlight: pip install hyperlight==0.0.5"
        ) from None
    network = case.network()
    kinds = [nn.Conv2d, nn.Linear]
    network = hyperlight.hypernetize(
        network, modules=hyperlight.find_modules_of_type(network, kinds)
    ).to(device())
    hypernetwork = hyperlight.HyperNet(
        input_shapes={"gamma": (1,)},
        output_shapes=network.external_shapes(),
        hidden_sizes=list(HIDDEN_SIZES),
    ).to(device())

    def forward(batch: Tensor, gamma: Tensor) -> Tensor:
        with network.using_externals(hypernetwork(gamma=gamma[0])):
            output: Tensor = network(batch)
            return output

    parameters = [*hypernetwork.parameters(), *network.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True if fused else None)
    return _stepper(case, forward, optimizer)


CONTESTANTS: dict[str, Callable[[Case], Contestant]] = {
    "plain": plain,
    "default": lambda case: ours(case, "default"),
    "mip": ours,
    "mip-written-out": lambda case: ours(case, optimizer=torch.optim.Adam),
    "hyperlight-adam": lambda case: _hyperlight(case, fused=False),
    "hyperlight-fused": lambda case: _hyperlight(case, fused=True),
}
"""What makes each contestant's step."""
