"""Image files as pixels of 8 bits: in their own range, upright, on white."""

import struct
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, TiffImagePlugin
from torch import Tensor
from torchvision.transforms import v2

from mip_lightning.errors import UsageError

UNREADABLE = (
    OSError,
    ValueError,  # a size that is not a number
    SyntaxError,  # Pillow's for a broken PNG, and for EXIF without its header
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow raises for a broken file."""

WHITE_OF_16_BITS = 65535

WITH_OPACITY = ("LA", "La", "PA", "RGBA", "RGBa")
"""Pillow's modes with an opacity for each pixel."""


def read_image(path: Path) -> UInt8[Tensor, "3 H W"]:
    """Read an image in color, as it is displayed.

    Gray of 9 to 16 bits is scaled so that its largest possible value becomes 255. The image is
    turned and mirrored as its EXIF orientation says. Transparent pixels lie on white. If a file
    has several images, the first is read.

    Raises:
        UsageError: If the file cannot be read, or its values have no range of their own.
    """
    try:
        # Not by its path: Pillow would map a plain TIFF into memory, and garble one that it turns.
        with path.open("rb") as stream, Image.open(stream) as file:
            file.load()
            white = _white(file, path)
            image = _upright(file)
            if white is not None:
                image = _in_bytes(image, white)
            pixels: Tensor = v2.functional.pil_to_tensor(_on_white(image))
    except UsageError:
        raise
    except UNREADABLE as error:
        raise UsageError(f"{path} cannot be read as an image ({error})") from error
    return pixels


def _white(file: Image.Image, path: Path) -> int | None:
    """The largest possible value where pixels have more than 8 bits, else ``None``."""
    if file.mode.startswith("I;16"):
        if not isinstance(file, TiffImagePlugin.TiffImageFile):
            return WHITE_OF_16_BITS
        if file.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
            raise UsageError(
                f"{path} has more than 8 bits and zero for white, which is read as black: save it"
                " with zero for black"
            )
        bits: int = file.tag_v2[TiffImagePlugin.BITSPERSAMPLE][0]
        return (1 << bits) - 1
    # Pillow before 10.3 gives this mode to PNG of 16 bits; it scales PGM of any range to 16 bits.
    if file.mode == "I" and file.format in ("PNG", "PPM"):
        return WHITE_OF_16_BITS
    if file.mode in ("I", "F"):
        raise UsageError(
            f"{path} has mode {file.mode!r}, in which no value is known to be white: save it with 8"
            " or 16 bits"
        )
    return None


def _upright(file: Image.Image) -> Image.Image:
    """The image, turned and mirrored as its EXIF orientation says."""
    if isinstance(file, TiffImagePlugin.TiffImageFile):
        return file  # Pillow does so when it loads one, and before 10.3 forgets that it has
    # Pillow remembers what it has read. Without the source, it does not write the other tags back,
    # which fails where one of them is broken.
    file.getexif()
    for source in ("exif", "Raw profile type exif"):
        file.info.pop(source, None)
    return ImageOps.exif_transpose(file)


def _in_bytes(image: Image.Image, white: int) -> Image.Image:
    """Values of ``0`` to ``white`` as levels of 0 to 255."""
    values = np.asarray(image).astype(np.int64)
    levels = np.round(values * 255.0 / white).astype(np.uint8)
    # PNG may name one value that is transparent.
    levels[values == image.info.get("transparency")] = 255
    return Image.fromarray(levels)


def _on_white(image: Image.Image) -> Image.Image:
    """In color, with white where it is transparent."""
    if image.mode in WITH_OPACITY or "transparency" in image.info:
        # Pillow turns gray that is multiplied by its opacity into color only by way of plain gray.
        image = image.convert("LA" if image.mode == "La" else image.mode).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
