"""What a model is made of, and the memory that work with it takes; no weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tasks.config import Params

if TYPE_CHECKING:
    from efface.models import Anatomy
    from efface.models.outline import Memory

_GIB = 2**30


def run(params: Params, name: str, root: Path = Path("data")) -> None:
    """Print groups, MLP blocks and estimated memory of a Hub id, a folder, or a model under `data/models`."""
    from dataclasses import replace

    from efface.models import anatomy
    from efface.models.loading import resolve
    from efface.models.lora import Lora
    from efface.models.outline import factors_of, memory, outline

    made = root / "models" / name
    source = resolve(made if made.is_dir() else Path(name) if Path(name).is_dir() else name)
    if source.id == params.base.source and source.revision is None:
        source = replace(
            source, revision=params.base.revision, trust_remote_code=params.base.trust_remote_code
        )
    model = outline(source)
    parts = anatomy(model)
    sizes = {key: p.numel() for key, p in model.named_parameters()}
    groups = params.saliency.groups
    chosen = set(parts.maskable) & {key for group in groups for key in parts.groups[group]}
    given = params.unlearn.lora
    lora = None if given is None else Lora(given.rank, given.alpha, given.dropout, given.components)
    factors = None if lora is None else factors_of(model, parts, lora)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    typer.echo(f"{source.id}: {type(model).__name__}, {sum(sizes.values()):,} parameters, {dtype}\n")
    typer.echo(_table(parts, sizes, chosen, factors))
    typer.echo("")
    quantization = None if given is None else given.quantization
    training = "all weights train, in float32"
    if given is not None:
        training = f"LoRA factors of rank {given.rank} train, on weights {quantization or 'as saved'}"
    typer.echo(f"memory if {training}; weights included, activations left out:")
    typer.echo(_memory(memory(model, parts, chosen=chosen, lora=lora, quantization=quantization)))


def _table(parts: Anatomy, sizes: dict[str, int], chosen: set[str], factors: dict[str, int] | None) -> str:
    """One line per group: parameters, share of the model, weights that train as a share of the group's, share
    a saliency mask may select, MLP blocks. With LoRA the factors train, and a mask selects among them."""
    total = sum(sizes.values())
    rows = [("group", "tensors", "parameters", "share", "trained", "maskable", "MLP blocks", "neurons")]
    for group, names in parts.groups.items():
        count = sum(sizes[name] for name in names)
        selectable = sum(sizes[name] for name in names if name in chosen)
        blocks = [mlp for mlp in parts.mlps if mlp.tower == group]
        widths = sorted({mlp.width for mlp in blocks})
        trained = count if factors is None else factors[group]
        selectable = selectable if factors is None else trained
        rows.append(
            (
                group,
                str(len(names)),
                f"{count:,}",
                f"{count / total:.1%}",
                f"{trained / count:.1%}" if count else "-",
                f"{selectable / count:.1%}" if count else "-",
                f"{len(blocks)} of {' or '.join(map(str, widths))}" if blocks else "-",
                f"{sum(mlp.width for mlp in blocks):,}",
            )
        )
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [
        [row[0].ljust(wide[0]), *(cell.rjust(width) for cell, width in zip(row[1:], wide[1:], strict=True))]
        for row in rows
    ]
    return "\n".join("  ".join(row) for row in aligned)


def _memory(needed: Memory) -> str:
    lines = []
    for label, value in (
        ("evaluation", needed.evaluation),
        ("saliency", needed.saliency),
        ("unlearning", needed.unlearning),
        ("pruning", needed.pruning),
    ):
        lines.append(f"  {label:<11} {value / _GIB:8.2f} GiB")
    return "\n".join(lines)
