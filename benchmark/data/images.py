"""Images: decoding, resizing and the evaluator's crop.

Legend: [h, w] pixels, y before x.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from benchmark.files import UserError

MEMBERS = ("jpg", "jpeg", "jpe", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")  # endings of images, anybody's
IMAGE_SUFFIXES = tuple(f".{member}" for member in MEMBERS)

# Everything that Pillow raises on a damaged file.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error,
          zlib.error, Image.DecompressionBombError)  # fmt: skip

# Of all errors of the system those that are a file's own; others are the disk's, the network's or this process'.
OF_THE_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.ENOTDIR, errno.ENAMETOOLONG)


def check_damage(error: Exception, path: Path | str) -> None:
    """Raises UserError unless an error tells that a file is damaged: no picture is left out for good because a disk failed."""
    number = error.errno if isinstance(error, OSError) else None
    if number is not None and number not in OF_THE_FILE:
        raise UserError(f"{path}: {error.strerror}; run the command again to continue") from None


@contextlib.contextmanager
def identified() -> Iterator[None]:
    """Pillow's error for what is no image, without the address of the buffer that it was in, which differs from run to run."""
    try:
        yield
    except UnidentifiedImageError:
        raise UnidentifiedImageError("cannot be identified as an image") from None


def decoded(data: bytes, extension: str) -> Image.Image:
    """The picture in `data` as RGB, by webdataset's decoder. Orientation tags are not applied (nor does ADM)."""
    with identified():
        return _decoder()(extension, data)


@functools.cache
def _decoder() -> Callable[[str, bytes], Image.Image]:
    from webdataset.autodecode import ImageHandler  # imports torch

    # Broken EXIF and transparent palettes are warnings only, once for each of a million files.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    return ImageHandler("pilrgb")


def halved(image: Image.Image, size_hw: tuple[int, int]) -> Image.Image:
    """`image` halved by box averages as often as it stays at least [h, w] large."""
    height, width = size_hw
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return image


def resized(image: Image.Image, size_hw: tuple[int, int]) -> Image.Image:
    """`image` at exactly [h, w]: box halving while that keeps it at least as large, then bicubic."""
    return halved(image, size_hw).resize(size_hw[::-1], Image.Resampling.BICUBIC)


def center_crop(image: Image.Image, size_hw: tuple[int, int]) -> Image.Image:
    """The middle of a picture at [h, w], as ADM prepares ImageNet (guided-diffusion, image_datasets.py).

    Box halving while both sides are at least twice the target, bicubic to the smallest size that covers the target, then
    the central window. For squares this is ADM's rule; covering instead of "shorter side" extends it to rectangles.
    """
    height, width = size_hw
    if image.size == (width, height):
        return image
    image = halved(image, size_hw)
    scale = max(height / image.height, width / image.width)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
