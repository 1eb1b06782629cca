"""Packed masks: the bits are the mask, whatever its size, and masking is multiplication."""

from __future__ import annotations

import pytest
import torch

from efface import masks
from efface.masks import PackedMask, keep_only, pack, unpack


def drawn(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.3


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (3, 5), (16, 9, 2), (0,)])
def test_unpacking_gives_the_mask_back_at_a_bit_per_weight(shape):
    mask = drawn(*shape)
    bits = pack(mask)
    assert bits.dtype == torch.uint8 and bits.numel() == -(-mask.numel() // 8)
    assert torch.equal(unpack(bits, shape), mask)


def test_other_devices_have_the_same_bits(monkeypatch):
    """The path of other devices, run on this one."""
    mask = drawn(5, 13)

    class Elsewhere:
        type = "elsewhere"

    places = torch.arange(8, dtype=torch.uint8)
    monkeypatch.setattr(masks, "_places", lambda device: places)
    monkeypatch.setattr(torch.Tensor, "device", property(lambda self: Elsewhere()))
    bits = pack(mask)
    back = unpack(bits, (5, 13))
    monkeypatch.undo()
    assert torch.equal(bits, pack(mask)) and torch.equal(back, mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5), (40, 33), (64,)])
def test_masking_is_multiplication_bit_for_bit(monkeypatch, shape, dtype):
    monkeypatch.setattr(masks, "_TILE", 64)
    mask = drawn(*shape)
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    tensor.view(-1)[:3] = torch.tensor([float("nan"), -0.0, float("inf")])
    expected = tensor * mask
    found = keep_only(tensor.clone(), pack(mask))
    assert torch.equal(found.view(torch.int16), expected.view(torch.int16))  # zeros' signs and NaN as well


def test_a_tensor_that_is_not_contiguous_is_masked_too():
    mask, tensor = drawn(6, 4), torch.ones(4, 6).T
    assert torch.equal(keep_only(tensor, pack(mask)), mask.float())


def test_a_packed_mask_is_a_mapping_of_its_entries():
    mask = {"a": drawn(3, 5), "b": drawn(9, seed=1)}
    packed = PackedMask.of(mask)
    assert packed.keys() == mask.keys() and all(torch.equal(packed[n], mask[n]) for n in mask)
    assert PackedMask.of(packed) is packed
    other = PackedMask.of({"b": ~mask["b"]})
    joined = packed | other
    assert torch.equal(joined["a"], mask["a"]) and torch.equal(joined["b"], ~mask["b"])
    assert packed.any() and not PackedMask.of({"a": torch.zeros(3, dtype=torch.bool)}).any()
