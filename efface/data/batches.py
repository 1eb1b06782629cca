"""Padding and joining encoded samples into batches, and taking batches apart again.

Three kinds of tensor leave a processor: those that run along the tokens of a text, those with one row per
text (Idefics: pictures of a text side by side, padded), and those that hold the pictures of all texts one
after the other (Qwen: the patches of all pictures in one row). None of them is told by a family's name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from efface.errors import DataError

Inputs = dict[str, Tensor]
IGNORED = -100
_ALONG_TOKENS = ("cross_attention_mask",)  # (B, T, pictures, tiles); all others along tokens are (B, T)


def collate(rows: Sequence[Inputs], pad: int | None, *, side: str = "right") -> Inputs:
    """Pad rows to one length and join them along the batch axis.

    Tensors along the tokens are padded: ids with ``pad``, labels with -100, masks and types with 0. Of all
    others (pixels, their masks, grids, ratios), those whose pictures differ in size are filled up with zeros
    at the end of each axis: every family that pads pictures masks or drops what is zero.

    Args:
        rows: encoded samples, each with a batch axis of 1.
        pad: padding id.
        side: ``right`` for training, ``left`` for generation.

    Raises:
        DataError: if there is no padding id, or text-only and multimodal rows meet in a family that cannot
            take them in one batch.
    """
    if pad is None:
        raise DataError(
            "the tokenizer has no padding token, so samples of different length cannot share a batch; name "
            "one of its tokens as `base.pad_token` in params.yaml (load_model's `pad_token`)"
        )
    length = max(row["input_ids"].shape[1] for row in rows)
    fill = {"input_ids": pad, "labels": IGNORED}
    batch: Inputs = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        if any(key in row and _along_tokens(key, row) for row in rows):
            batch[key] = torch.cat([_padded(key, row, length, side, fill.get(key, 0)) for row in rows])
        else:
            batch[key] = _joined([row[key] for row in _with_pictures(key, rows)])
    return batch


def split(batch: Inputs, image_token: int | None) -> list[Inputs]:
    """The samples of a batch, each as a batch of one, still padded along the tokens.

    Where a tensor holds the pictures of all samples one after the other, each sample takes its share by the
    number of its picture tokens.

    Args:
        batch: what ``collate`` returned.
        image_token: id of the token that stands for (a part of) a picture.

    Raises:
        DataError: if the picture tokens do not tell which pictures belong to which sample.
    """
    size = len(batch["input_ids"])
    if size == 1:
        return [batch]
    shares = [0] * size
    if image_token is not None:
        shares = (batch["input_ids"] == image_token).sum(dim=1).tolist()
    samples: list[Inputs] = [{} for _ in range(size)]
    for key, value in batch.items():
        rows = _rows_of(key, value, batch, shares)
        for sample, part in zip(samples, value.split(rows), strict=True):
            if len(part):
                sample[key] = part
    return [_without_picture_padding(sample) for sample in samples]


def to_device(batch: Inputs, device: torch.device) -> Inputs:
    """The batch on another device."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}


def _along_tokens(key: str, row: Inputs) -> bool:
    value = row[key]
    return key in _ALONG_TOKENS or (value.dim() == 2 and value.shape == row["input_ids"].shape)


def _padded(key: str, row: Inputs, length: int, side: str, fill: int) -> Tensor:
    if key in _ALONG_TOKENS and key not in row:
        raise DataError(
            "this family takes pictures through cross-attention, where a text-only sample changes when a "
            "multimodal one shares its batch; keep the two apart (Encoder.batches does)"
        )
    value = row.get(key)
    value = torch.zeros_like(row["input_ids"]) if value is None else value
    gap = length - value.shape[1]
    sides = [0, gap] if side == "right" else [gap, 0]
    return torch.nn.functional.pad(value, [0, 0] * (value.dim() - 2) + sides, value=fill)


def _with_pictures(key: str, rows: Sequence[Inputs]) -> list[Inputs]:
    """The rows that hold a picture tensor; where it has one row per text, blank ones for the others."""
    having = [row for row in rows if key in row]
    if len(having) == len(rows) or "pixel_attention_mask" not in having[0]:
        return having
    blank = {key: torch.zeros_like(having[0][key])}
    return [row if key in row else blank for row in rows]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    if len({part.shape[1:] for part in parts}) == 1:
        return torch.cat([*parts])
    largest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    filled = []
    for part in parts:
        gaps = [gap for n, m in zip(part.shape[1:], largest, strict=True) for gap in (m - n, 0)]
        filled.append(torch.nn.functional.pad(part, gaps[::-1]))
    return torch.cat(filled)


def _without_picture_padding(sample: Inputs) -> Inputs:
    """One sample's pictures as they were before they were filled up to the size of others beside them."""
    mask = sample.get("pixel_attention_mask")
    if mask is None:
        return sample
    if not mask.any():
        return {k: v for k, v in sample.items() if k not in ("pixel_values", "pixel_attention_mask")}
    pictures, height, width = (int(axis.max()) + 1 for axis in mask[0].nonzero(as_tuple=True))
    pixels = sample["pixel_values"][:, :pictures, :, :height, :width]
    return sample | {"pixel_values": pixels, "pixel_attention_mask": mask[:, :pictures, :height, :width]}


def _rows_of(key: str, value: Tensor, batch: Inputs, shares: Sequence[int]) -> list[int]:
    """How many rows of a tensor belong to each sample."""
    size, rows, pictured = len(shares), len(value), [share > 0 for share in shares]
    mixed = any(pictured) and not all(pictured)
    if rows == size and (not mixed or _along_tokens(key, batch) or "pixel_attention_mask" in batch):
        return [1] * size
    if rows == sum(pictured):
        return [int(has) for has in pictured]
    total = sum(shares)
    if not total or any(rows * share % total for share in shares):
        raise DataError(
            f"{key!r} has {rows} rows for {size} samples with {list(shares)} picture tokens, so the batch "
            "cannot be taken apart; use batches of one sample"
        )
    return [rows * share // total for share in shares]
