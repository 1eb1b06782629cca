"""Tiny models of every family, and samples whose pictures differ in size and shape."""

from __future__ import annotations

import importlib.util
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.efface.conftest import sample
from tests.models import FAMILIES, build_tiny

SIZES = [(32, 32), (40, 20), (20, 44), (48, 24)]


def missing_packages(name: str) -> list[str]:
    """Packages a family's processor needs that are not installed."""
    return [need for need in FAMILIES[name].needs if importlib.util.find_spec(need) is None]


def picture(i: int) -> bytes:
    """A PNG of noise, of another size for each of four."""
    width, height = SIZES[i % 4]
    pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def pictured():
    return [sample(i, image=picture(i)) for i in range(4)]


@pytest.fixture(scope="session")
def written():
    return [sample(i, pictured=False) for i in range(4)]


@pytest.fixture(scope="session")
def album():
    """Questions about one, two and three pictures."""
    return [
        replace(sample(i, image=picture(i)), more_image_bytes=tuple(map(picture, range(i)))) for i in range(3)
    ]


@pytest.fixture(scope="session")
def tiny():
    """Family name -> model and processor, built once: a test that changes weights copies the model first."""
    built = {}

    def get(name: str):
        if missing := missing_packages(name):
            pytest.skip(f"needs {', '.join(missing)}: pip install 'efface[families]'")
        if name not in built:
            built[name] = build_tiny(name)
        return built[name]

    return get
