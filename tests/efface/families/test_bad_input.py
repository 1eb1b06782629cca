"""Pictures a processor rejects, and packages that are not there."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from PIL import Image

from efface.encoding import Encoder
from efface.errors import DataError, ModelError
from efface.models.source import Source, loading_error
from efface.torchvision_shim import ensure_torchvision


def strip(width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, format="PNG")
    return buffer.getvalue()


def test_a_picture_that_the_processor_rejects_is_named(tiny, pictured):
    _, processor = tiny("qwen2_vl")
    long = replace(pictured[1], image_bytes=strip(2000, 2))
    with pytest.raises(DataError, match=r"Qwen2VLProcessor rejects a picture of 2000 x 2 pixels.*ratio"):
        Encoder(processor, [pictured[0], long]).batch([0, 1])


def test_without_torchvision_the_error_says_what_to_install():
    error = ImportError("Qwen2VLVideoProcessor requires the Torchvision library but it was not found")
    message = str(loading_error(Source("Qwen/Qwen2-VL-2B-Instruct"), error))
    assert "pip install 'efface[families]'" in message
    assert isinstance(loading_error(Source("x"), error), ModelError)


def test_torchvision_that_is_not_there_is_no_error(monkeypatch):
    monkeypatch.delitem(__import__("sys").modules, "torchvision", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert ensure_torchvision() is False
