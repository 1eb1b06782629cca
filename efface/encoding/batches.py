"""Padding and joining encoded samples into batches, and splitting batches again.

Processors return three kinds of tensor: along the tokens of a text; one row per text (Idefics: the pictures
of a text side by side, padded); and the pictures of all texts one after another (Qwen: the patches of all
pictures in one row). The kinds are recognised by shape, never by a family's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from efface.errors import DataError

Inputs = dict[str, Tensor]
IGNORED = -100
# (B, T, pictures, tiles) and (B, T, pictures); all others along tokens are (B, T)
_ALONG_TOKENS = ("cross_attention_mask", "image_attention_mask")


@dataclass(frozen=True)
class _Share:
    """One sample's share of one tensor of its batch.

    Attributes:
        rows: number of rows.
        shape: their sizes from axis 1 on, before padding to the size of other samples; None if blank.
    """

    rows: int
    shape: tuple[int, ...] | None


class Collated(dict[str, Tensor]):
    """A padded batch that records which rows belong to which sample, however many pictures each has.

    Args:
        tensors: the batch.
        shares: for each tensor, each sample's share.
    """

    def __init__(self, tensors: Mapping[str, Tensor], shares: Mapping[str, Sequence[_Share]]):
        super().__init__(tensors)
        self.shares = shares


def collate(rows: Sequence[Inputs], pad: int | None, *, side: str = "right") -> Collated:
    """Pad rows to one length and join them along the batch axis.

    Tensors along the tokens are padded: ids with ``pad``, labels with -100, masks and types with 0. All
    others (pixels, their masks, grids, ratios) are filled with zeros at the end of each axis if their
    pictures differ in size or number: every family that pads pictures masks or drops zeros.

    Args:
        rows: encoded samples, each with a batch axis of 1.
        pad: padding id.
        side: ``right`` for training, ``left`` for generation.

    Raises:
        DataError: if there is no padding id, or text-only and multimodal rows are mixed in a family that
            cannot take both in one batch.
    """
    if pad is None:
        raise DataError(
            "the tokenizer has no padding token, so samples of different length cannot share a batch; name "
            "one of its tokens as `base.pad_token` in params.yaml (load_model's `pad_token`)"
        )
    length = max(row["input_ids"].shape[1] for row in rows)
    fill = {"input_ids": pad, "labels": IGNORED}
    batch: Inputs = {}
    shares: dict[str, list[_Share]] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        if any(key in row and _along_tokens(key, row) for row in rows):
            parts = [_padded(key, row, length, side, fill.get(key, 0)) for row in rows]
            shares[key] = [_Share(1, tuple(part.shape[1:])) for part in parts]
        else:
            parts = [_pictures(key, row, rows) for row in rows]
            shares[key] = [
                _Share(len(part), tuple(part.shape[1:]) if key in row else None)
                for part, row in zip(parts, rows, strict=True)
            ]
        batch[key] = _joined(parts)
    return Collated(batch, shares)


def split(batch: Inputs, image_token: int | None) -> list[Inputs]:
    """The samples of a batch, each as a batch of one, still padded along the tokens.

    A batch from ``collate`` records what belongs to which sample. In any other batch whose tensors hold the
    pictures of all samples one after another, the number of picture tokens gives each sample's share, and
    no sample may have more than one picture.

    Args:
        batch: what ``collate`` returned, or model inputs made elsewhere.
        image_token: id of the token that stands for (a part of) a picture.

    Raises:
        DataError: if the picture tokens do not determine which pictures belong to which sample.
    """
    size = len(batch["input_ids"])
    if size == 1:
        return [batch]
    if isinstance(batch, Collated):
        return [_sample(batch, i) for i in range(size)]
    tokens = [0] * size
    if image_token is not None:
        tokens = (batch["input_ids"] == image_token).sum(dim=1).tolist()
    samples: list[Inputs] = [{} for _ in range(size)]
    for key, value in batch.items():
        rows = _rows_of(key, value, batch, tokens)
        for sample, part in zip(samples, value.split(rows), strict=True):
            if len(part):
                sample[key] = part
    return [_without_picture_padding(sample) for sample in samples]


def one_picture_each(batch: Inputs) -> bool:
    """Whether the pictures of a batch are whole, all of one size, and one per sample."""
    pixels = batch.get("pixel_values")
    if pixels is None or pixels.dim() != 4 or len(pixels) != len(batch["input_ids"]):
        return False
    return not isinstance(batch, Collated) or all(share.rows == 1 for share in batch.shares["pixel_values"])


def to_device(batch: Inputs, device: torch.device) -> Inputs:
    """The batch on another device."""
    moved = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
    return Collated(moved, batch.shares) if isinstance(batch, Collated) else moved


def _along_tokens(key: str, row: Inputs) -> bool:
    value = row[key]
    return key in _ALONG_TOKENS or (value.dim() == 2 and value.shape == row["input_ids"].shape)


def _padded(key: str, row: Inputs, length: int, side: str, fill: int) -> Tensor:
    if key in _ALONG_TOKENS and key not in row:
        raise DataError(
            "this family reads pictures through cross-attention, where a multimodal sample in the batch "
            "changes the text-only ones; keep the two apart (Encoder.batches does)"
        )
    value = row.get(key)
    value = torch.zeros_like(row["input_ids"]) if value is None else value
    gap = length - value.shape[1]
    sides = [0, gap] if side == "right" else [gap, 0]
    return torch.nn.functional.pad(value, [0, 0] * (value.dim() - 2) + sides, value=fill)


def _pictures(key: str, row: Inputs, rows: Sequence[Inputs]) -> Tensor:
    """A row's pictures; without pictures, a blank one in families with one row per text, else no row."""
    if key in row:
        return row[key]
    like = next(row for row in rows if key in row)
    return torch.zeros_like(like[key]) if "pixel_attention_mask" in like else like[key][:0]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    if len({part.shape[1:] for part in parts}) == 1:
        return torch.cat([*parts])
    largest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    filled = []
    for part in parts:
        gaps = [gap for n, m in zip(part.shape[1:], largest, strict=True) for gap in (m - n, 0)]
        filled.append(torch.nn.functional.pad(part, gaps[::-1]))
    return torch.cat(filled)


def _sample(batch: Collated, index: int) -> Inputs:
    """One sample of a batch, its pictures without the padding to the size of others."""
    sample: Inputs = {}
    for key, value in batch.items():
        shares = batch.shares[key]
        share, start = shares[index], sum(before.rows for before in shares[:index])
        if share.rows and share.shape is not None:
            unpadded = tuple(slice(size) for size in share.shape)
            sample[key] = value[(slice(start, start + share.rows), *unpadded)]
    return sample


def _without_picture_padding(sample: Inputs) -> Inputs:
    """One sample without the rows and columns that pad its pictures to the size of others."""
    mask = sample.get("pixel_attention_mask")
    if mask is None:
        return sample
    if not mask.any():
        return {k: v for k, v in sample.items() if k not in ("pixel_values", "pixel_attention_mask")}
    pictures, height, width = (int(axis.max()) + 1 for axis in mask[0].nonzero(as_tuple=True))
    pixels = sample["pixel_values"][:, :pictures, :, :height, :width]
    return sample | {"pixel_values": pixels, "pixel_attention_mask": mask[:, :pictures, :height, :width]}


def _rows_of(key: str, value: Tensor, batch: Inputs, tokens: Sequence[int]) -> list[int]:
    """How many rows of a tensor belong to each sample."""
    size, rows, pictured = len(tokens), len(value), [count > 0 for count in tokens]
    mixed = any(pictured) and not all(pictured)
    if rows == size and (not mixed or _along_tokens(key, batch) or "pixel_attention_mask" in batch):
        return [1] * size
    if rows == sum(pictured):
        return [int(has) for has in pictured]
    total = sum(tokens)
    if not total or any(rows * count % total for count in tokens):
        raise DataError(
            f"{key!r} has {rows} rows for {size} samples with {list(tokens)} picture tokens, so the batch "
            "cannot be taken apart; use batches of one sample"
        )
    return [rows * count // total for count in tokens]
