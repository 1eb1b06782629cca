"""What a model is made of, and the memory that work with it takes; no weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tasks.params import Params

if TYPE_CHECKING:
    from efface.models import Anatomy
    from efface.models.outline import Memory

_GIB = 2**30


def run(params: Params, name: str, root: Path = Path("data")) -> None:
    """Print groups, MLP blocks and estimated memory of a Hub id, a folder, or a model under `data/models`."""
    from dataclasses import replace

    from efface.models import anatomy
    from efface.models.loading import resolve
    from efface.models.outline import memory, outline

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
    chosen = {key for key in parts.maskable for group in groups if key in set(parts.groups[group])}
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    typer.echo(f"{source.id}: {type(model).__name__}, {sum(sizes.values()):,} parameters, {dtype}\n")
    typer.echo(_table(parts, sizes, chosen))
    typer.echo("")
    typer.echo(_memory(memory(model, parts, chosen=chosen)))


def _table(parts: Anatomy, sizes: dict[str, int], chosen: set[str]) -> str:
    """One line per group: parameters, share of the model, share a saliency mask may select, MLP blocks."""
    total = sum(sizes.values())
    rows = [("group", "tensors", "parameters", "share", "maskable", "MLP blocks", "neurons")]
    for group, names in parts.groups.items():
        count = sum(sizes[name] for name in names)
        selectable = sum(sizes[name] for name in names if name in chosen)
        blocks = [mlp for mlp in parts.mlps if mlp.tower == group]
        widths = sorted({mlp.width for mlp in blocks})
        share = f"{selectable / count:.1%}" if count else "-"
        rows.append(
            (
                group,
                str(len(names)),
                f"{count:,}",
                f"{count / total:.1%}",
                share,
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
    lines = ["memory, weights included, activations left out:"]
    for label, value in (
        ("evaluation", needed.weights),
        ("saliency", needed.saliency),
        ("unlearning", needed.unlearning),
        ("pruning", needed.pruning),
    ):
        lines.append(f"  {label:<11} {value / _GIB:8.2f} GiB")
    return "\n".join(lines)
