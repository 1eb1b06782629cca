"""The README.md of an unlearned model's folder: what it forgot and how."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efface.cards import model_card
from tasks.runtime.artifacts import read_json
from tasks.runtime.salt import salt_of


def write_readme(
    folder: Path,
    name: str,
    *,
    stage: str,
    root: Path,
    parameters: Mapping[str, Any],
    seed: int,
    inputs: Mapping[str, str],
) -> None:
    """Write the card of a model that was just made and is not scored yet, so it says where scores will be.

    It holds nothing that differs between two runs that make the same model and hash ids with the same key, no
    time and no commit: those are in the record it names.

    Args:
        folder: of the model.
        name: of the method, and of the model.
        stage: that makes it, ``unlearn`` or ``prune``.
        root: the data folder, which says whom it forgot.
        parameters: of the method.
        seed: of the run.
        inputs: name to digest of what it was made from.
    """
    text = model_card(
        name,
        method=name,
        people=read_json(root / "prepared" / "splits.json")["entities"]["forget"],
        key=salt_of(root.absolute().parent),
        parameters=parameters,
        provenance={"seed": seed, "inputs": dict(inputs), "record": f"data/runs/{stage}@{name}.json"},
        scores="This card was written when the model was made, before it was scored. The report of the "
        f"project that made it has a card with its scores and the yardsticks': data/report/cards/{name}.md.",
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
