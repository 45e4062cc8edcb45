"""Where an image stands in the padded volume that a network was given."""

from collections.abc import Sequence

from jaxtyping import Integer
from torch import Tensor


def in_the_middle(padded: Sequence[int], size: Integer[Tensor, " D"] | None) -> tuple[slice, ...]:
    """The box of an image in the middle of zeros, as the data modules pad it.

    Args:
        padded: Size of the padded image.
        size: Size of the image; ``None`` for all of it.
    """
    if size is None:
        return tuple(slice(0, length) for length in padded)
    starts = [(length - int(n)) // 2 for length, n in zip(padded, size, strict=True)]
    return tuple(slice(start, start + int(n)) for start, n in zip(starts, size, strict=True))
