"""Decoding pictures to RGB, as a viewer shows them."""

from __future__ import annotations

import io
import struct
import threading
from typing import TYPE_CHECKING

from cachetools import LRUCache, cached

from efface.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are decoded. Others are refused: decoding some, such as EPS, runs other programs."""

_ORIENTATION = 0x0112  # EXIF tag
_DAMAGED = (SyntaxError, ValueError, TypeError, AttributeError, KeyError, struct.error)
"""What Pillow raises at EXIF data and tags of the wrong type, among others."""

CACHE_BYTES = 1 << 30
"""Memory that decoded pictures may take."""


def decode_picture(encoded: bytes) -> Image:
    """The picture in RGB, upright as its EXIF orientation says, over white where it is transparent.

    16-bit grey values are scaled to 8 bits. An animation gives its first frame.

    Raises:
        DataError: if the picture is damaged, not in one of `FORMATS`, or has 32 bits per pixel, whose range
            no file states.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        picture = _upright(Image.open(io.BytesIO(encoded), formats=FORMATS))
        if picture.mode in ("I", "F"):
            raise ValueError("the range of 32-bit pixels is unknown; save it with 8 or 16 bits")
        if picture.mode.startswith("I;16"):
            picture = _eight_bits(picture)
        if not picture.has_transparency_data:
            return picture.convert("RGB")
        pixels = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, *_DAMAGED, OSError) as error:
        reason = str(error).split("<")[0].strip()
        raise DataError(
            f"the picture cannot be decoded ({len(encoded)} bytes: {reason}); expected a complete file in "
            f"one of the formats {', '.join(FORMATS)}"
        ) from error


def _upright(picture: Image) -> Image:
    """The picture turned as its EXIF orientation says; as stored if the EXIF data are damaged.

    `PIL.ImageOps.exif_transpose` also writes the other EXIF data anew, and fails if one of them is damaged.
    """
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    picture.load()  # turns a TIFF, whose orientation is then gone
    try:
        orientation = picture.getexif().get(_ORIENTATION)
    except _DAMAGED:
        return picture
    turn = turns.get(orientation) if isinstance(orientation, int) else None
    return picture if turn is None else picture.transpose(turn)


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
        return "the picture is missing" if encoded is None else "the picture's file is empty (0 bytes)"
    try:
        decode_picture(encoded)
    except DataError as error:
        return str(error)
    return None
