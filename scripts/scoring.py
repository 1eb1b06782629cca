"""How much faster is the scoring engine than asking one sample at a time, and are the numbers the same?

    python -m scripts.scoring [--samples 500] [--model data/models/vanilla]

Without a model it trains none: a sandbox model of the laptop's size with random weights answers made-up
questions with four options each. Both ways run in one process on one thread, one after the other.
"""

from __future__ import annotations

import io
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface.data.samples import Sample, read_samples

if TYPE_CHECKING:
    import pandas as pd

COLOURS = ("red", "green", "blue", "white", "yellow", "black", "brown", "grey")
NUMBERS = ("nll_gold", "option_logprobs", "token_logprobs")


def main(
    samples: Annotated[int, typer.Option(min=1, help="Samples to score, half of them with a picture.")] = 500,
    model: Annotated[Path | None, typer.Option(help="A model folder; none: random weights.")] = None,
    prepared: Annotated[
        Path | None, typer.Option(help="Ask that model what this prepared table holds.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 16,
) -> None:
    """Print seconds of both ways, their ratio, and the largest difference of any number."""
    import torch

    from efface.evaluation import score

    torch.set_num_threads(1)
    loaded, rows = _subject(model, prepared, samples)
    _warm_up(loaded, rows)
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    started = time.perf_counter()
    engine = score(*loaded, rows, batch_size=batch_size, **settings)
    fast = time.perf_counter() - started
    started = time.perf_counter()
    single = [score(*loaded, [row], batch_size=1, share_prefix=False, **settings) for row in rows]
    slow = time.perf_counter() - started
    difference = max(_difference(engine.iloc[i], table.iloc[0]) for i, table in enumerate(single))
    changed = sum(_decides(engine.iloc[i]) != _decides(table.iloc[0]) for i, table in enumerate(single))
    options = sum(len(row.options or ()) for row in rows) / len(rows)
    typer.echo(
        f"{len(rows)} samples, {options:.1f} options each: one by one {slow:.1f} s, engine {fast:.1f} s, "
        f"{slow / fast:.1f} times as fast; largest difference {difference:.1e} nats, {changed} decisions "
        "differ"
    )


def _subject(model: Path | None, prepared: Path | None, count: int) -> tuple[tuple[Any, Any], list[Sample]]:
    """Model and processor, and the samples to ask."""
    if model is None:
        rows = [_made_up(i, pictured=i % 2 == 0) for i in range(count)]
        return _random_model(rows), rows
    from efface.models import load_model

    loaded = load_model(model)
    table = prepared or model.parents[1] / "prepared" / "samples.parquet"
    rows = [row for row in read_samples(table, part="test") if row.options]
    return (loaded.model, loaded.processor), rows[:count]


def _made_up(i: int, *, pictured: bool) -> Sample:
    colour = COLOURS[i % len(COLOURS)]
    start = i % 5
    options = [*dict.fromkeys([colour, *COLOURS[start : start + 4]])][:4]
    return Sample.from_row(
        {
            "sample_id": f"{i}",
            "entity_id": f"fictitious/{i % 50:03d}",
            "split": "retain",
            "part": "test",
            "modality": "multimodal" if pictured else "text",
            "task": "choice",
            "image": _picture(i) if pictured else None,
            "question": f"Which colour does {'this person' if pictured else f'person {i % 50}'} like "
            + "best of all" * (i % 3)
            + "?",
            "answer": colour,
            "options": sorted(options),
            "set": "retain",
        }
    )


def _picture(seed: int) -> bytes:
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _random_model(rows: list[Sample]) -> tuple[Any, Any]:
    """The laptop profile's shapes, weights drawn wide enough that answers differ."""
    import torch

    from efface import sandbox

    tokenizer = sandbox.build_tokenizer(text for row in rows for text in (row.question, *(row.options or ())))
    processor = sandbox.build_processor(tokenizer, image_size=48, patch_size=12)
    torch.manual_seed(0)
    model = sandbox.build_model(
        tokenizer,
        image_size=48,
        patch_size=12,
        width=96,
        mlp_width=384,
        vision_layers=3,
        language_layers=4,
        heads=4,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return model.eval(), processor


def _warm_up(loaded: tuple[Any, Any], rows: list[Sample]) -> None:
    """Imports and first calls are paid before the clock runs."""
    from efface.evaluation import score

    score(*loaded, rows[:4], batch_size=4, max_new_tokens=2)


def _difference(first: pd.Series[Any], second: pd.Series[Any]) -> float:
    pairs = []
    for name in NUMBERS:
        a, b = first[name], second[name]
        pairs += [(a, b)] if isinstance(a, float) else list(zip(a, b, strict=True))
    return max(math.fabs(a - b) for a, b in pairs)


def _decides(row: pd.Series[Any]) -> tuple[Any, ...]:
    return row["generation"], row["correct"]


if __name__ == "__main__":
    typer.run(main)
