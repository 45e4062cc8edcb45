"""Where a smaller image stands in a padded one: both have their middle in one place."""

from collections.abc import Sequence


def centered(padded: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    """The box of an image in a padded one: voxel ``n // 2`` of n lies on voxel ``p // 2`` of p.

    So where two images stand to each other does not depend on the size they are padded to.

    Args:
        padded: Size p along each axis.
        size: Size n of the image, at most p.
    """
    starts = [p // 2 - n // 2 for p, n in zip(padded, size, strict=True)]
    return tuple(slice(start, start + n) for start, n in zip(starts, size, strict=True))
