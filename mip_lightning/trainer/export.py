"""An ordinary network into a file that other programs read, kept only if it computes the same."""

import copy
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from mip_lightning.errors import UsageError
from mip_lightning.utilities.files import replacing
from mip_lightning.utilities.nested import Inputs, as_arguments, tensors_in

Format: TypeAlias = Literal["state_dict", "torch_export", "onnx"]

SUFFIXES: dict[Format, str] = {"state_dict": ".pt", "torch_export": ".pt2", "onnx": ".onnx"}

TOLERANCE = {"state_dict": 0.0, "torch_export": 1e-5, "onnx": 1e-4}
"""Largest difference of an output, in units of the largest; other programs round otherwise."""


def random_like(inputs: Inputs) -> Inputs:
    """Inputs of the same structure with random numbers; integers, which may be indices, stay."""
    random: Inputs = apply_to_collection(
        inputs, Tensor, lambda t: torch.rand_like(t) if t.is_floating_point() else t.clone()
    )
    return random


def _several(inputs: Inputs) -> Inputs:
    """At least two samples: of one, ``torch.export`` takes it that there never are more."""
    if any(len(tensor) != 1 for tensor in tensors_in([inputs]) if tensor.ndim):
        return inputs
    doubled: Inputs = apply_to_collection(
        inputs, Tensor, lambda t: torch.cat([t, t]) if t.ndim else t
    )
    return doubled


@torch.no_grad()
def export_network(network: nn.Module, inputs: Inputs, path: Path, format: Format) -> None:
    """Write a network in evaluation mode, read it back, and keep it if the outputs are the same.

    Args:
        network: An ordinary network.
        inputs: What it takes; compared on random numbers of this shape. The number of samples
            stays free where the network allows.
        path: The file; one that is there is not overwritten.
        format: ``state_dict`` (``torch.save``), ``torch_export`` (``torch.export``) or ``onnx``,
            which needs the packages of ``pip install 'mip-lightning[export]'``.

    Raises:
        UsageError: If the file is there, a package is missing, or the network cannot be written
            in this format, or then computes something else.
    """
    if path.exists():
        raise UsageError(f"path={str(path)!r} is there already: name another file")
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            if find_spec(package) is None:
                raise UsageError(
                    f"format='onnx' needs the package {package}: pip install"
                    " 'mip-lightning[export]'"
                )
    network = copy.deepcopy(network).eval()
    random = random_like(_several(inputs))
    args, kwargs = as_arguments(random)
    expected = list(tensors_in([network(*args, **kwargs)]))
    with replacing(path) as unfinished:
        try:
            found = _WRITERS[format](network, args, kwargs, unfinished)
        except RuntimeError as error:
            cause: BaseException = error
            while cause.__cause__ is not None:  # the exporters wrap what is wrong in what to do
                cause = cause.__cause__
            reason = str(cause).strip().splitlines()[0]
            raise UsageError(
                f"format={format!r}: PyTorch cannot write {type(network).__name__} so ({reason}):"
                " choose another format"
            ) from error
        check_same_outputs(found, expected, TOLERANCE[format], f"format={format!r}")


def _state_dict(
    network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: Path
) -> list[Tensor]:
    torch.save(network.state_dict(), path)
    again = copy.deepcopy(network)
    for tensor in again.state_dict().values():
        tensor.zero_()  # so that only what the file holds can agree
    again.load_state_dict(torch.load(path, weights_only=True))
    return list(tensors_in([again(*args, **kwargs)]))


def _torch_export(
    network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: Path
) -> list[Tensor]:
    program = torch.export.export(network, args, kwargs, dynamic_shapes=_free_batch(args, kwargs))
    torch.export.save(program, path)
    return list(tensors_in([torch.export.load(path).module()(*args, **kwargs)]))


def _onnx(
    network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: Path
) -> list[Tensor]:
    import onnxruntime

    torch.onnx.export(
        network,
        args,
        path,
        kwargs=kwargs,
        dynamo=True,
        external_data=False,
        dynamic_shapes=_free_batch(args, kwargs),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    values = [tensor.numpy() for tensor in tensors_in([args, kwargs])]
    outputs = session.run(None, dict(zip(names, values, strict=True)))
    return [torch.from_numpy(output) for output in outputs]


_Writer: TypeAlias = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Path], list[Tensor]]
_WRITERS: dict[Format, _Writer] = {
    "state_dict": _state_dict,
    "torch_export": _torch_export,
    "onnx": _onnx,
}


def _free_batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Tells ``torch.export`` that the first dimension of each tensor may be free."""

    def free(tensor: Tensor) -> dict[int, Any]:
        return {0: torch.export.Dim.AUTO} if tensor.ndim else {}

    by_position = apply_to_collection(args, Tensor, free)
    return apply_to_collection(kwargs, Tensor, free) if kwargs else by_position


def check_same_outputs(
    found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float, what: str
) -> None:
    """Raise if outputs differ.

    Args:
        found: The tensors of one output.
        expected: Those of the other.
        tolerance: Largest difference, in units of the largest expected value.
        what: What is compared, for the message.

    Raises:
        UsageError: If they differ by more.
    """
    for ours, theirs in zip(expected, found, strict=True):
        scale = float(ours.abs().max()) or 1.0
        difference = float((ours - theirs).abs().max()) / scale
        if not difference <= tolerance:
            raise UsageError(
                f"{what}: the network's output differs by {difference:.2g} of its largest value,"
                f" more than {tolerance:g}; the file was not kept"
            )
