"""Pictures are decoded as a viewer shows them, from an explicit list of formats, and held by bytes."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers.image_utils import load_image

from efface.data import pictures
from efface.data.pictures import cached_picture, decode_picture, picture_fault
from tests.efface.data.conftest import refusal

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 4), dtype=np.uint8)
PIXELS[:, :, 3] = 255


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def opaque(mode):
    return Image.fromarray(PIXELS, "RGBA").convert("RGB").convert(mode)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_picture_is_turned_as_its_exif_says(orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(opaque("RGB"), format, exif=exif)
    expected = load_image(Image.open(io.BytesIO(encoded)))
    assert decode_picture(encoded).tobytes() == expected.tobytes()
    assert decode_picture(encoded).size == ((6, 9) if orientation > 4 else (9, 6))


def with_exif(*entries, format="JPEG"):
    """A picture of 4 x 2 pixels, the left half white, with EXIF entries (tag, type, count, value)."""
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + b"abcdefgh" * 8
    image = Image.new("RGB", (4, 2))
    image.paste("white", (0, 0, 2, 2))
    return encode(image, format, exif=exif)


UPRIGHT = (0x0112, 3, 1, 6)
DAMAGED_TAGS = {
    "a fraction as the camera's name": (0x010F, 5, 1, 46),
    "a number as the camera's name": (0x010F, 11, 1, 46),
    "bytes as the resolution": (0x011A, 1, 1, 46),
    "text as the resolution": (0x011A, 2, 1, 46),
    "bytes as a number": (0x0213, 1, 1, 46),
    "a number out of range": (0x0213, 4, 2, 46),
    "a place outside the file": (0x010F, 2, 900, 100_000),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", DAMAGED_TAGS)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_other_damaged_exif_data_do_not_matter(damage, format):
    """A viewer shows such a photo, upright."""
    decoded = decode_picture(with_exif(UPRIGHT, DAMAGED_TAGS[damage], format=format))
    assert decoded.size == (2, 4)
    assert decoded.getpixel((0, 0))[0] > 200 and decoded.getpixel((0, 3))[0] < 50


@pytest.mark.parametrize(
    "orientation", [(0x0112, 3, 1, 0), (0x0112, 3, 1, 9), (0x0112, 2, 1, 54), (0x0112, 5, 1, 46)]
)
def test_an_orientation_that_is_none_turns_nothing(orientation):
    assert decode_picture(with_exif(orientation)).size == (4, 2)


OPAQUE = [
    ("1", "PNG"), ("L", "PNG"), ("P", "PNG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"),
    ("L", "JPEG"), ("RGB", "JPEG"), ("CMYK", "JPEG"), ("YCbCr", "JPEG"),
    ("CMYK", "TIFF"), ("YCbCr", "TIFF"), ("LAB", "TIFF"), ("RGBX", "TIFF"),
    ("P", "GIF"), ("RGB", "WEBP"), ("RGBA", "WEBP"), ("1", "BMP"), ("RGB", "BMP"),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "format"), OPAQUE)
def test_an_opaque_picture_is_what_load_image_gives(mode, format):
    image = opaque("RGB").convert("LAB") if mode == "LAB" else opaque(mode)
    encoded = encode(image, format)
    expected = load_image(Image.open(io.BytesIO(encoded)))
    decoded = decode_picture(encoded)
    assert decoded.mode == "RGB"
    assert decoded.tobytes() == expected.tobytes()


@pytest.mark.parametrize(("mode", "format"), [("I;16", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF")])
def test_16_bit_grey_is_scaled(mode, format):
    values = np.array([[0, 256, 257, 32768, 65535]])
    image = Image.new(mode, (5, 1))
    for x, value in enumerate(values[0]):
        image.putpixel((x, 0), int(value))
    assert np.asarray(decode_picture(encode(image, format)))[0, :, 0].tolist() == [0, 1, 1, 128, 255]


def test_transparent_parts_are_white():
    pixels = PIXELS.copy()
    pixels[:, :4, 3] = 0
    pixels[:, 4:6, 3] = 51
    for format in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True, "exact": True} if format == "WEBP" else {}
        decoded = np.asarray(decode_picture(encode(Image.fromarray(pixels, "RGBA"), format, **options)))
        assert (decoded[:, :4] == 255).all()
        mixed = (0.2 * pixels[:, 4:6, :3] + 0.8 * 255).astype(int)
        assert np.abs(decoded[:, 4:6].astype(int) - mixed).max() <= 1
        assert (decoded[:, 6:] == pixels[:, 6:, :3]).all()


def test_the_transparent_colour_of_other_modes_is_white():
    cases = [(Image.new("RGB", (1, 1), (10, 20, 30)), (10, 20, 30)), (Image.new("L", (1, 1), 10), 10)]
    indexed = Image.new("P", (1, 1), 3)
    indexed.putpalette(range(30))
    cases += [(indexed, 3), (Image.new("I;16", (1, 1), 300), 300)]
    for image, transparency in cases:
        encoded = encode(image, transparency=transparency)
        assert decode_picture(encoded).getpixel((0, 0)) == (255, 255, 255), image.mode
    grey = Image.merge("LA", [Image.new("L", (1, 1), 7), Image.new("L", (1, 1), 0)])
    assert decode_picture(encode(grey)).getpixel((0, 0)) == (255, 255, 255)
    assert decode_picture(encode(ImageOps.invert(Image.new("L", (1, 1))))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_range_are_refused(mode):
    with refusal("32-bit", "16 bits"):
        decode_picture(encode(Image.new(mode, (2, 2)), "TIFF"))


@pytest.mark.parametrize("format", ["EPS", "PDF", "ICO", "PPM", "TGA", "ICNS", "PCX"])
def test_other_formats_are_refused(format):
    with refusal("PNG, JPEG"):
        decode_picture(encode(opaque("RGB").resize((16, 16)), format))


def test_eps_runs_no_program(monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda *a, **k: pytest.fail("Ghostscript ran"))
    assert picture_fault(encode(opaque("RGB"), "EPS"))


def test_the_first_frame_of_an_animation_is_shown():
    frames = [Image.new("P", (4, 4), i) for i in range(3)]
    for frame in frames:
        frame.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    encoded = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_picture(encoded).getpixel((0, 0)) == (0, 0, 0)


MODES = [("RGB", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("P", "PNG"), ("LA", "PNG"), ("RGB", "TIFF")]
MODES += [("RGB", "WEBP"), ("P", "GIF"), ("RGB", "BMP")]


@pytest.mark.filterwarnings("ignore")  # Pillow's, of what is damaged
@pytest.mark.parametrize(("mode", "format"), MODES)
def test_a_damaged_picture_is_decoded_or_refused(mode, format):
    """Whatever its bytes are, no other error than DataError leaves."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encode(opaque(mode), format, **({} if format in ("GIF", "BMP") else {"exif": exif}))
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 5)):
            damaged[place % rng.choice([60, len(whole)])] = rng.integers(256)
        fault = picture_fault(bytes(damaged))
        assert fault is None or "picture" in fault


@pytest.mark.parametrize("encoded", [None, b"", b"no picture", encode(opaque("RGB"))[:-30]])
def test_a_picture_that_cannot_be_used_says_why(encoded):
    assert "picture" in picture_fault(encoded)


def test_decoded_pictures_are_held_by_their_bytes(monkeypatch):
    cache = cached_picture.cache
    cache.clear()
    small, large = encode(Image.new("RGB", (10, 10))), encode(Image.new("RGB", (2000, 3000)))
    assert cached_picture(small) is cached_picture(small)
    assert cache.currsize == 300
    cached_picture(large)
    assert cache.currsize == 300 + 3 * 2000 * 3000
    assert cache.maxsize == pictures.CACHE_BYTES
    cache.clear()
