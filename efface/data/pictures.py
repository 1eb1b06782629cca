"""Decoding pictures to RGB, as a viewer shows them."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING

from cachetools import LRUCache, cached

from efface.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are decoded. Others are refused: decoding some, such as EPS, runs other programs."""

CACHE_BYTES = 1 << 30
"""Memory that decoded pictures may take."""


def decode_picture(encoded: bytes) -> Image:
    """The picture in RGB, upright as its EXIF orientation says, over white where it is transparent.

    16-bit grey values are scaled to 8 bits. An animation gives its first frame.

    Raises:
        DataError: if the picture is damaged, not in one of `FORMATS`, or has 32 bits per pixel, whose range
            no file states.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded), formats=FORMATS))
        if picture.mode in ("I", "F"):
            raise ValueError("the range of 32-bit pixels is unknown; save it with 8 or 16 bits")
        if picture.mode.startswith("I;16"):
            picture = _eight_bits(picture)
        if not picture.has_transparency_data:
            return picture.convert("RGB")
        pixels = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        reason = str(error).split("<")[0].strip()
        raise DataError(
            f"the picture cannot be decoded ({len(encoded)} bytes: {reason}); expected a complete file in "
            f"one of the formats {', '.join(FORMATS)}"
        ) from error


def _eight_bits(picture: Image) -> Image:
    """16-bit grey as 8-bit grey, with the one transparent value that a PNG may name."""
    import numpy as np
    from PIL import Image

    values = np.asarray(picture).astype(np.uint32)
    grey = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    transparent = picture.info.get("transparency")
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


@cached(
    LRUCache(CACHE_BYTES, getsizeof=lambda picture: 3 * picture.width * picture.height),
    lock=threading.Lock(),
)
def cached_picture(encoded: bytes) -> Image:
    """`decode_picture`, with recent pictures cached. Copy one before changing it."""
    return decode_picture(encoded)


def picture_fault(encoded: bytes | None) -> str | None:
    """Why a picture is unusable, or None. It does not stay in memory."""
    if not encoded:
        return "the picture is missing"
    try:
        decode_picture(encoded)
    except DataError as error:
        return str(error)
    return None
