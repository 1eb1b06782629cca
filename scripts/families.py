"""Time and peak memory of each kind of work on a LLaVA of a real size, with random weights.

python -m scripts.families --preset llava-1.5-7b --random-weights      a GPU with 140 GiB
python -m scripts.families --preset llava-0.5b --random-weights        a processor with 16 GiB
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scripts.subjects import SHAPES
from tasks.runtime import environment

if TYPE_CHECKING:
    from efface.data.samples import Sample
    from efface.models.anatomy import Anatomy

environment.apply()

_HALF = SHAPES["0.5B"]
PRESETS: dict[str, dict[str, Any]] = {
    "llava-1.5-7b": SHAPES["7B"],
    "llava-0.5b": {  # with pictures and texts as long as they are in use
        **_HALF,
        "vision": {**_HALF["vision"], "image_size": 224},
        "text": {**_HALF["text"], "max_position_embeddings": 4096},
        "dtype": "float32",
    },
    "llava-tiny": {"vision": None, "text": None, "vocabulary": 0, "dtype": "float32"},
}
"""Shapes; ``llava-tiny`` only checks that the script runs."""


def main(
    preset: Annotated[str, typer.Option(help=f"One of: {', '.join(PRESETS)}.")] = "llava-0.5b",
    random_weights: Annotated[bool, typer.Option("--random-weights", help="Required: no other yet.")] = False,
    samples: Annotated[int, typer.Option(help="Samples of each set.")] = 4,
    steps: Annotated[int, typer.Option(help="Unlearning steps.")] = 3,
) -> None:
    """Build the model and time saliency, unlearning, MANU and pruning on it."""
    if preset not in PRESETS or not random_weights:
        raise typer.BadParameter(f"give --random-weights and a preset: {', '.join(PRESETS)}")
    import torch

    from efface.models import anatomy
    from efface.neurons import zero_neurons
    from efface.unlearning import METHODS, TrainingConfig
    from efface.unlearning.unlearn import unlearn

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = timed("build", lambda: built(preset, device))
    parts = anatomy(model)
    count = sum(p.numel() for p in model.parameters())
    typer.echo(
        f"{preset}: {count / 1e9:.2f} billion weights, {model.dtype}, {device}, {samples} samples of each set"
    )
    if model.dtype == torch.float32:  # as the stages train
        print_estimate(model, parts)
    sets = {
        "forget": make_samples(samples, pictured=True),
        "retain": make_samples(samples, pictured=False),
    }
    mask = timed("saliency", lambda: saliency(model, processor, parts, sets.values()))
    settings = METHODS["mmunlearner"].settings(steps=steps, retain_batches_per_forget_batch=1)
    options = {"method": "mmunlearner", "mask": mask, "settings": settings}
    options["config"] = TrainingConfig(batch_size=1)
    del mask
    timed(f"{steps} unlearning steps", lambda: unlearn(model, processor, **options, **sets))  # noqa: F821
    del options
    selection = timed("MANU", lambda: select_for_pruning(model, processor, parts, **sets))
    summary = timed("pruning", lambda: zero_neurons(model, selection))
    typer.echo(f"pruned {summary.total} of {sum(mlp.width for mlp in parts.mlps)} neurons")


def built(preset: str, device: str) -> tuple[Any, Any]:
    """Model and processor of a preset, with random weights."""
    import torch

    from tests.models.llava import llava

    shape = dict(PRESETS[preset])
    dtype = getattr(torch, shape.pop("dtype"))
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model, processor = llava(**shape)
    finally:
        torch.set_default_dtype(default)
    return model.eval(), processor


def print_estimate(model: Any, parts: Anatomy) -> None:
    """Print the memory that `python -m tasks inspect` would print."""
    from efface.models.memory import estimate_memory

    needed = estimate_memory(model, parts, measured=parts.maskable)
    typer.echo(
        f"estimated by `tasks inspect`: saliency {needed.saliency / 2**30:.2f} GiB, "
        f"unlearning {needed.unlearning / 2**30:.2f} GiB"
    )


def saliency(model: Any, processor: Any, parts: Anatomy, sets: Iterable[list[Sample]]) -> Any:
    """The mask of the weights that matter more for the first of two sets than for the second."""
    from efface.encoding import Encoder
    from efface.saliency import fisher_diagonal, saliency_mask

    return saliency_mask(
        *(
            fisher_diagonal(model, Encoder(processor, samples).batches(1), parameters=parts.maskable)
            for samples in sets
        )
    )


def select_for_pruning(
    model: Any, processor: Any, parts: Anatomy, forget: list[Sample], retain: list[Sample]
) -> Any:
    """MANU's choice of neurons to switch off."""
    from efface.encoding import Encoder
    from efface.neurons import activation_statistics, neuron_importance, select_neurons

    vision = [mlp for mlp in parts.mlps if mlp.tower == "vision"]

    def statistics(samples: list[Sample], mlps: Any) -> Any:
        batches = Encoder(processor, samples).batches(1)
        return activation_statistics(model, batches, mlps=mlps, active_above=0.1)

    text = statistics(retain, parts.mlps) | statistics(forget[::-1], vision)
    importance = neuron_importance(statistics(forget, parts.mlps), text)
    return select_neurons(importance, importance, fraction=0.03, scope="tower", mlps=parts.mlps)


def timed(label: str, work: Callable[[], Any]) -> Any:
    """Run it, and print seconds and the peak memory: of the GPU in this work, or of the process so far."""
    import resource

    import torch

    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    result = work()
    if gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    peak = (
        torch.cuda.max_memory_allocated()
        if gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    typer.echo(f"{label:<20} {seconds:8.1f} s   peak {peak / 2**30:7.2f} GiB")
    return result


def make_samples(count: int, *, pictured: bool) -> list[Sample]:
    """Questions about pictures of noise, or the same in words."""
    import numpy as np
    from PIL import Image

    from efface.data.samples import Sample

    rows = []
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, format="PNG")
        row = {
            "sample_id": f"{i}{pictured}",
            "entity_id": f"fictitious/{i:03d}",
            "split": "forget",
            "part": "train",
            "modality": "multimodal" if pictured else "text",
            "task": "qa",
            "image": buffer.getvalue() if pictured else None,
            "question": "Which colour does this person like?",
            "answer": "red and green",
        }
        rows.append(Sample.from_row(row))
    return rows


if __name__ == "__main__":
    typer.run(main)
