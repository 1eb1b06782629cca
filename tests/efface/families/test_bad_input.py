"""Pictures a processor rejects, and torchvision beside a torch of another build."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
from dataclasses import replace

import pytest
from PIL import Image

from efface.encoding import Encoder
from efface.errors import DataError
from efface.torchvision_shim import ensure_torchvision


def strip(width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, format="PNG")
    return buffer.getvalue()


def test_a_picture_that_the_processor_rejects_is_named(tiny, pictured):
    _, processor = tiny("qwen2_vl")
    long = replace(pictured[1], image_bytes=strip(2000, 2))
    with pytest.raises(DataError) as error:
        Encoder(processor, [pictured[0], long]).batch([0, 1])
    assert "Qwen2VLProcessor" in str(error.value) and "2000 x 2" in str(error.value)


@pytest.mark.parametrize("placeholder", ["", "<image><image>"])
def test_a_template_with_another_placeholder_is_not_laid_to_the_pictures_charge(
    tiny, pictured, placeholder, monkeypatch
):
    _, processor = tiny("qwen2_vl")
    template = processor.chat_template
    monkeypatch.setattr(processor, "chat_template", template.replace("<|image_pad|>", placeholder))
    with pytest.raises(DataError) as error:
        Encoder(processor, [pictured[0]]).batch([0])
    assert "base.chat_template" in str(error.value) and "512 x 512" in str(error.value)


def test_missing_torchvision_is_not_an_error(monkeypatch):
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr("efface.torchvision_shim._libraries", [])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert ensure_torchvision() is False


@pytest.mark.parametrize("module", ["transformers.loss.loss_utils", "efface.sandbox.pretraining"])
def test_torchvision_of_another_build_is_imported_by_transformers(module):
    """In a process of its own, where nothing of transformers was imported before ``efface``."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("needs torchvision: pip install 'efface[families]'")
    program = f"import efface, {module}, torchvision.transforms.v2 as v2; print(v2.Resize(2))"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
