"""Reading picture files: images, label maps and panoptic PNGs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dformer.utils.errors import UserError

ORIENTATION = 0x0112  # EXIF tag; from 5 on, height and width change places
# Pillow reads many more, some by other programs; and is not always built with all of these.
Image.init()
_KNOWN = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
FORMATS = tuple(name for name in _KNOWN if name in Image.OPEN)
MAX_PIXELS = 100_000_000  # of a picture, 1.1 GiB while it is read; a header may claim any number
_INTEGER_MODES = ("I", "I;16", "I;16B", "I;16L")  # PIL's modes of pictures of 16 bits a pixel


def read_image(file_name: str | Path, image_format: str = "RGB") -> NDArray[np.uint8]:
    """Read an image as (H, W, 3) uint8, "RGB" or "BGR", turned as its EXIF orientation says.

    Grey and palette images become colour images, 16 bits become 8, an alpha channel is dropped.

    Raises:
        UserError: the file is missing or not a readable image.
    """
    if image_format not in ("RGB", "BGR"):
        raise UserError(f'INPUT.FORMAT is "{image_format}"; choose "RGB" or "BGR"')
    pixels = _upright_rgb(_read_picture(file_name, "image"), f"image {file_name}")
    return np.ascontiguousarray(pixels if image_format == "RGB" else pixels[:, :, ::-1])


def to_image(source: str | Path | Image.Image | NDArray[Any]) -> NDArray[np.uint8]:
    """Return an image as (H, W, 3) uint8, RGB, from a file, a picture of PIL's, or an array.

    Args:
        source: files and pictures as of `read_image`; an array (H, W, 3) RGB or (H, W) grey, uint8.

    Raises:
        UserError: it cannot be read, or is none of these; nothing is guessed of an array of another type or shape.
    """
    if isinstance(source, str | Path):
        return read_image(source)
    if isinstance(source, Image.Image):
        return _upright_rgb(source.copy(), "the image")
    if not isinstance(source, np.ndarray):
        raise UserError(f"an image must be a file, a PIL image or a NumPy array, got {type(source).__name__}")
    if source.dtype != np.uint8:
        values = f" from {source.min():g} to {source.max():g}" if source.size and source.dtype.kind in "fiu" else ""
        scaled = "(255 * image).round()" if source.dtype.kind == "f" and source.max(initial=0) <= 1 else "image"
        remedy = f"give {scaled}.astype(np.uint8), if the result is in 0..255"
        raise UserError(f"an image must be an array of uint8, 0 to 255, got {source.dtype}{values}; {remedy}")
    if source.ndim not in (2, 3) or source.shape[2:] not in ((), (1,), (3,)) or not source.size:
        remedy = ""
        if source.ndim == 4:
            remedy = "; give several images as a list"
        elif source.ndim == 3 and source.shape[0] in (1, 3):
            remedy = "; the channels come last: give image.transpose(1, 2, 0)"
        elif source.shape[2:] == (4,):
            remedy = "; leave the fourth channel out: image[:, :, :3]"
        raise UserError(f"an image must be an array (H, W, 3), RGB, or (H, W), grey, got {source.shape}{remedy}")
    return np.ascontiguousarray(np.broadcast_to(source.reshape(*source.shape[:2], -1), (*source.shape[:2], 3)))


def _upright_rgb(picture: Image.Image, name: str) -> NDArray[np.uint8]:
    """Turn a picture, in place, as its EXIF orientation says, and return its pixels (H, W, 3)."""
    with suppress(Exception):  # broken EXIF data do not make an image unreadable
        ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode in _INTEGER_MODES:
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) / 257).round().astype(np.uint8))
    elif picture.mode == "F":
        raise UserError(f"{name} holds floating-point numbers; give it with 8 or 16 bits a channel")
    return np.asarray(picture.convert("RGB"))


def read_size(file_name: str | Path) -> tuple[int, int]:
    """Read the height and width of an image, turned as its EXIF orientation says, without its pixels.

    Raises:
        UserError: the file is missing or not an image.
    """
    with _opened(file_name, "image") as picture:
        turned = picture.getexif().get(ORIENTATION, 1) >= 5
        return (picture.width, picture.height) if turned else (picture.height, picture.width)


def read_labels(file_name: str | Path, label_map: Mapping[int, int] | None = None) -> NDArray[np.integer[Any]]:
    """Read a label map (H, W): grey values of 8 bits (uint8) or 16 bits (int32), or the indices of a palette (uint8).

    With a `label_map`, value in the file -> label, it is the labels that are returned (int32).

    Raises:
        UserError: the file is missing, unreadable or a colour picture, or has a value that is not in `label_map`.
    """
    picture = _read_picture(file_name, "label map")
    if picture.mode not in ("L", "P", "1", *_INTEGER_MODES):
        raise UserError(
            f"label map {file_name} is a picture of mode {picture.mode}; it must be a grey or palette picture"
        )
    labels = np.asarray(picture).astype(np.int32 if picture.mode in _INTEGER_MODES else np.uint8)
    if label_map is None:
        return labels
    unknown = max(label_map) + 1
    table = np.full(unknown + 1, -1, np.int32)
    table[list(label_map)] = list(label_map.values())
    mapped = table[labels.clip(-1, unknown)]
    if mapped.min() < 0:
        raise UserError(
            f"label map {file_name} holds the value {labels[mapped < 0].max()}, which is none of the known ones: "
            f"{', '.join(map(str, sorted(label_map)))}"
        )
    return mapped


def read_panoptic_png(file_name: str | Path) -> NDArray[np.uint8]:
    """Read a PNG of segment ids, (H, W, 3): id = R + 256 G + 65536 B, 0 is void.

    Raises:
        UserError: the file is missing or unreadable, or not a PNG in colour.
    """
    picture = _read_picture(file_name, "panoptic annotation", ("PNG",))
    if picture.mode not in ("RGB", "RGBA"):
        raise UserError(
            f"panoptic annotation {file_name} is a picture of mode {picture.mode}; COCO's format is an RGB PNG, whose "
            "pixels hold the segment id as R + 256 G + 65536 B"
        )
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _read_picture(file_name: str | Path, role: str, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    with _opened(file_name, role, formats) as picture:
        picture.load()
        return picture


@contextmanager
def _opened(file_name: str | Path, role: str, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    try:
        with open(file_name, "rb") as file:
            picture = Image.open(file, formats=formats)
            if picture.width * picture.height > MAX_PIXELS:
                raise UserError(f"{role} {file_name} is too large: {picture.width} x {picture.height} pixels; tile it")
            yield picture
    except UserError:
        raise
    except Exception as error:  # what Pillow raises on a broken file depends on where it is broken
        raise UserError(f"{role} {file_name} cannot be read: {str(error) or type(error).__name__}") from error
