"""Image files become the pixels that a viewer shows; truth is an array made by numpy."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mip_lightning import UsageError
from mip_lightning.data import ImageFolders

GRAY = np.linspace(0, 65535, 12 * 16).round().astype(np.uint16).reshape(12, 16)
GRAY[0, :4] = [127, 129, 385, 386]  # between levels of 257
LEVELS = np.round(GRAY / 257.0)
"""As bytes: 65535 becomes 255."""


def pixels(path: Path) -> np.ndarray:
    """What ImageFolders reads of an image, shape ``(H, W, 3)``."""
    folder = path.parent / f"classes_{path.name}"
    for number in range(6):
        copy = folder / "one" / f"{number}{path.suffix}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    data = ImageFolders(str(folder), image_size=16)
    data.setup("fit")
    image = data.splits["train"]._images[0]
    return np.moveaxis(image.numpy().astype(int), 0, -1)


def write_png(
    path: Path, values: np.ndarray, color: int, depth: int = 16, chunks: bytes = b""
) -> None:
    """PNG, from its specification: signature, IHDR, rows without filter."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + chunks
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def write_tiff(path: Path, values: np.ndarray, bits: int, kind: int = 1, **tags: int) -> None:
    """TIFF 6.0: a header, one strip of data, one directory."""
    order = ">" if values.dtype.byteorder == ">" else "<"
    samples = 2 if "opacity" in tags else 1
    short, long = (3, f"{order}HH"), (4, f"{order}I")
    entries = {
        256: (long, [tags.get("width", values.shape[1])]),
        257: (long, [values.shape[0]]),
        258: (short, [bits] * samples),
        259: (short, [1]),  # no compression
        262: (short, [tags.get("black_is_zero", 1)]),
        273: (long, [8]),  # the strip starts here
        277: (short, [samples]),
        278: (long, [values.shape[0]]),
        279: (long, [values.nbytes]),
        338: (short, [tags.get("opacity", 0)]),
        339: (short, [kind] * samples),  # 1 unsigned, 2 signed, 3 float
    }
    if "opacity" not in tags:
        del entries[338]
    directory = struct.pack(f"{order}H", len(entries))
    for tag, ((number, form), given) in entries.items():
        filled = given if form.endswith("I") else [*given, 0][:2]
        directory += struct.pack(f"{order}HHI", tag, number, len(given))
        directory += struct.pack(form, *filled)
    start = b"II*\0" if order == "<" else b"MM\0*"
    offset = struct.pack(f"{order}I", 8 + values.nbytes)
    path.write_bytes(start + offset + values.tobytes() + directory + bytes(4))


def write_gray(path: Path, kind: str) -> None:
    """An image of the values of GRAY."""
    match kind:
        case "png":
            write_png(path, GRAY, 0)
        case "tiff, little-endian":
            write_tiff(path, GRAY.astype("<u2"), 16)
        case "tiff, big-endian":
            write_tiff(path, GRAY.astype(">u2"), 16)
        case "tiff, packed":
            Image.fromarray(GRAY).save(path, compression="tiff_lzw")
        case "pgm":
            path.write_bytes(b"P5\n16 12\n65535\n" + GRAY.astype(">u2").tobytes())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gray.png", "png"),
        ("gray.tif", "tiff, little-endian"),
        ("gray.tif", "tiff, big-endian"),
        ("gray.tif", "tiff, packed"),
        ("gray.pgm", "pgm"),
    ],
)
def test_16_bits_of_gray_are_brought_to_8_by_their_range(name, kind, tmp_path):
    write_gray(tmp_path / name, kind)
    image = pixels(tmp_path / name)
    for channel in range(3):
        assert np.array_equal(image[..., channel], LEVELS)


def test_12_bits_of_gray_are_brought_to_8_by_their_range(tmp_path):
    values = (GRAY >> 4).astype(int)
    truth = values / 4095 * 255
    first, second = values[:, ::2], values[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1)
    write_tiff(tmp_path / "gray.tif", packed.reshape(12, 24).astype(np.uint8), 12, width=16)
    assert np.array_equal(pixels(tmp_path / "gray.tif")[..., 0], np.round(truth))
    (tmp_path / "gray.pgm").write_bytes(b"P5\n16 12\n4095\n" + values.astype(">u2").tobytes())
    assert np.abs(pixels(tmp_path / "gray.pgm")[..., 0] - truth).max() < 0.51  # rounded twice


def test_a_transparent_value_of_16_bits_becomes_white(tmp_path):
    key = png_chunk(b"tRNS", struct.pack(">H", GRAY[3, 3]))
    write_png(tmp_path / "gray.png", GRAY, 0, chunks=key)
    is_key = np.equal(GRAY, GRAY[3, 3])
    truth = np.where(is_key, 255, LEVELS)
    assert np.array_equal(pixels(tmp_path / "gray.png")[..., 1], truth)


def test_16_bits_of_colour_are_near_their_levels(tmp_path):
    colors = np.stack([GRAY, GRAY[::-1], 65535 - GRAY], -1)
    write_png(tmp_path / "color.png", colors, 2)
    assert np.abs(pixels(tmp_path / "color.png") - colors / 257).max() <= 1
    opaque = np.full_like(GRAY, 65535)
    write_png(tmp_path / "opaque.png", np.stack([GRAY, opaque], -1), 4)
    assert np.abs(pixels(tmp_path / "opaque.png")[..., 0] - GRAY / 257).max() <= 1
    write_png(tmp_path / "clear.png", np.stack([GRAY, opaque * 0], -1), 4)
    assert (pixels(tmp_path / "clear.png") == 255).all()


@pytest.mark.parametrize(
    ("kind", "mode"), [("<i2", "I"), ("<i4", "I"), ("<u4", "I"), ("<f4", "F"), (">f4", "F")]
)
def test_a_mode_without_a_range_is_refused_by_name(kind, mode, tmp_path):
    values = (GRAY // 2).astype(kind)
    number = {"u": 1, "i": 2, "f": 3}[kind[1]]
    write_tiff(tmp_path / "deep.tif", values, 8 * values.itemsize, number)
    with pytest.raises(UsageError, match=rf"\d\.tif has mode '{mode}'.*save it with 8 or"):
        pixels(tmp_path / "deep.tif")


def test_16_bits_with_zero_for_white_are_refused(tmp_path):
    """Pillow reads them as if zero were black."""
    write_tiff(tmp_path / "gray.tif", GRAY.astype("<u2"), 16, black_is_zero=0)
    with pytest.raises(UsageError, match=r"\d\.tif .*zero for white.*save it"):
        pixels(tmp_path / "gray.tif")


def test_modes_of_8_bits_are_read_as_they_were(tmp_path):
    gray = (GRAY >> 8).astype(np.uint8)
    colors = np.stack([gray, gray[::-1], 255 - gray], -1)
    for mode, values, truth in (
        ("L", gray, np.stack([gray] * 3, -1)),
        ("RGB", colors, colors),
        ("1", gray > 99, np.stack([(gray > 99) * 255] * 3, -1)),
    ):
        Image.fromarray(values).save(tmp_path / f"{mode}.png")
        assert np.array_equal(pixels(tmp_path / f"{mode}.png"), truth)
    palette = Image.fromarray(gray)
    palette = palette.point(lambda value: value % 5).convert("P")
    palette.putpalette([0, 0, 9, 10, 20, 30, 40, 50, 60, 70, 80, 90, 200, 210, 220])
    palette.save(tmp_path / "P.png")
    table = np.array([[0, 0, 9], [10, 20, 30], [40, 50, 60], [70, 80, 90], [200, 210, 220]])
    assert np.array_equal(pixels(tmp_path / "P.png"), table[gray % 5])
    ink = np.stack([gray, gray * 0, gray * 0, gray * 0], -1)  # cyan takes away red
    Image.fromarray(ink, "CMYK").save(tmp_path / "CMYK.tif")
    truth = np.stack([255 - gray, gray * 0 + 255, gray * 0 + 255], -1)
    assert np.abs(pixels(tmp_path / "CMYK.tif") - truth).max() <= 1


ALPHA = np.tile(np.array([0, 64, 128, 255], np.uint8), (12, 4))
COLOURS = np.stack([GRAY >> 8, (GRAY >> 8)[::-1], 255 - (GRAY >> 8)], -1).astype(np.uint8)


def on_white(colors: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255.0
    return share * colors + (1.0 - share) * 255.0


@pytest.mark.parametrize("name", ["image.png", "image.tif", "image.webp"])
def test_transparent_colours_lie_on_white(name, tmp_path):
    image = Image.fromarray(np.concatenate([COLOURS, ALPHA[..., None]], -1))
    options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    image.save(tmp_path / name, **options)
    assert np.abs(pixels(tmp_path / name) - on_white(COLOURS, ALPHA)).max() <= 1


def test_transparent_gray_lies_on_white(tmp_path):
    gray = COLOURS[..., :1]
    truth = on_white(gray.repeat(3, -1), ALPHA)
    Image.fromarray(np.concatenate([gray, ALPHA[..., None]], -1), "LA").save(tmp_path / "LA.png")
    assert np.abs(pixels(tmp_path / "LA.png") - truth).max() <= 1


def test_gray_that_is_multiplied_by_its_opacity_lies_on_white(tmp_path):
    pytest.importorskip("PIL", minversion="13")  # before, Pillow does not read it
    gray = COLOURS[..., :1]
    truth = on_white(gray.repeat(3, -1), ALPHA)
    associated = np.stack([np.round(gray[..., 0] * (ALPHA / 255.0)), ALPHA], -1).astype(np.uint8)
    write_tiff(tmp_path / "La.tif", associated, 8, opacity=1)
    assert np.abs(pixels(tmp_path / "La.tif") - truth).max() <= 2


def test_transparent_palettes_lie_on_white(tmp_path):
    numbers = (np.arange(12 * 16) % 4).astype(np.uint8).reshape(12, 16)
    colors = np.array([[200, 0, 0], [0, 150, 0], [0, 0, 100], [9, 9, 9]], np.uint8)
    image = Image.fromarray(numbers, "P")
    image.putpalette(colors.reshape(-1).tolist())
    for name, given, alpha in (
        ("one.png", 2, [255, 255, 0, 255]),
        ("all.png", bytes([0, 64, 128, 255]), [0, 64, 128, 255]),
    ):
        image.save(tmp_path / name, transparency=given)
        truth = on_white(colors[numbers], np.array(alpha)[numbers])
        assert np.abs(pixels(tmp_path / name) - truth).max() <= 1


def test_a_transparent_value_of_8_bits_lies_on_white(tmp_path):
    gray = COLOURS[..., 0]
    Image.fromarray(gray).save(tmp_path / "L.png", transparency=int(gray[2, 2]))
    truth = np.where(gray == gray[2, 2], 255, gray)
    assert np.array_equal(pixels(tmp_path / "L.png")[..., 2], truth)
    key = tuple(int(value) for value in COLOURS[5, 5])
    Image.fromarray(COLOURS).save(tmp_path / "RGB.png", transparency=key)
    clear = np.equal(COLOURS, COLOURS[5, 5]).all(-1, keepdims=True)
    assert np.array_equal(pixels(tmp_path / "RGB.png"), np.where(clear, 255, COLOURS))


TURNED = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image),
}
"""EXIF 2.32, tag 274: where the first row and column of what is stored are when it is displayed."""


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("name", ["image.png", "gray.png", "image.tif", "gray.tif", "image.jpg"])
def test_photographs_lie_as_they_are_displayed(name, orientation, tmp_path):
    exif = Image.Exif()
    exif[274] = orientation
    smooth = np.stack([np.add.outer(np.arange(12), 9 * np.arange(16))] * 3, -1).astype(np.uint8)
    stored = GRAY if name.startswith("gray") else smooth
    Image.fromarray(stored).save(tmp_path / name, exif=exif)
    truth = LEVELS[..., None].repeat(3, -1) if name.startswith("gray") else smooth
    image = pixels(tmp_path / name)
    assert image.shape == TURNED[orientation](truth).shape
    assert np.abs(image - TURNED[orientation](truth)).max() <= (4 if name.endswith("jpg") else 0)


def test_an_orientation_is_read_where_other_tags_are_broken(tmp_path):
    """Pillow reads these EXIF data and cannot write them."""
    exif = Image.Exif()
    exif[274], exif[306] = 6, "2020:01:01 00:00:00"
    content = exif.tobytes()
    # The date claims to be a fraction: 306 (0x0132), of type 5 for 2.
    broken = content.replace(
        b"\x01\x32\x00\x02\x00\x00\x00\x14", b"\x01\x32\x00\x05\x00\x00\x00\x01"
    )
    assert broken != content
    Image.fromarray(COLOURS).save(tmp_path / "image.png", exif=broken)
    assert np.array_equal(pixels(tmp_path / "image.png"), np.rot90(COLOURS, -1))


def broken(kind: str, path: Path) -> None:
    match kind:
        case "too many pixels":
            header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
            path.write_bytes(
                b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"")
            )
        case "half of it":
            write_png(path, GRAY, 0)
            path.write_bytes(path.read_bytes()[:-80])
        case "no checksum":
            write_png(path, GRAY, 0, chunks=png_chunk(b"tEXt", b"a\0b")[:-1] + b"\0")
        case "no EXIF":
            Image.fromarray(COLOURS).save(path, exif=b"Exif\0\0nonsense")


@pytest.mark.parametrize("kind", ["too many pixels", "half of it", "no checksum", "no EXIF"])
def test_a_broken_file_is_named(kind, tmp_path):
    broken(kind, tmp_path / "image.png")
    with pytest.raises(UsageError, match=r"\d\.png cannot be read as an image"):
        pixels(tmp_path / "image.png")
