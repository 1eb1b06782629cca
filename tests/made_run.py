"""params.yaml with the quick profile cut down to seconds, for tests that run real stages in this process."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path

from tasks.config import Params, load_params

PROJECT = Path(__file__).resolve().parents[1]
SMALL = {
    r"^  profile: \w+": "  profile: quick",
    r"^    avatars: \{people: 20.*": "    avatars: {people: 10, real: 4, holdout: 2, stranger_pictures: 60, "
    "skill_samples: 30, train_views: 2, test_views: 1}",
    r"^    base: \{vision_steps.*": "    base: {vision_steps: 1, steps: 1, batch_size: 8, width: 32, "
    "mlp_width: 64, vision_layers: 2, language_layers: 2}",
    r"^    vanilla: \{.*": "    vanilla: {steps: 40, batch_size: 16}",
    r"^    retrained: \{.*": "    retrained: {steps: 20, batch_size: 16}",
    r"^    saliency: \{.*": "    saliency: {fisher_samples: 8}",
    r"^    importance: \{.*": "    importance: {samples: 8}",
    r"^    evaluate: \{.*": "    evaluate: {max_people: 2}",
}


def parameters(folder: Path, changes: Mapping[str, str]) -> Params:
    """The parameters after these replacements (pattern of a line to the line), each made once.

    The file goes to `folder`.
    """
    text = (PROJECT / "params.yaml").read_text(encoding="utf-8")
    for pattern, replacement in (SMALL | dict(changes)).items():
        text, count = re.subn(pattern, replacement, text, count=1, flags=re.MULTILINE)
        assert count == 1, f"{pattern} is not in params.yaml"
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    return load_params(folder / "params.yaml")


def imported(name: str, **roots: Path) -> dict[str, str]:
    """The replacements that choose an imported benchmark."""
    given = ", ".join(f"{role}: {path}" for role, path in roots.items())
    return {r"^  name: avatars": f"  name: {name}", r"^  roots: \{\}": f"  roots: {{{given}}}"}


def run_stages(params: Params, root: Path) -> None:
    """Run every stage up to the scores, in this process."""
    stages: list[tuple[str, str | None]] = [
        (stage, None)
        for stage in ("benchmark", "prepare", "base", "vanilla", "retrained", "saliency", "importance")
    ]
    stages += [("prune", name) for name in params.prune.methods]
    stages += [("unlearn", name) for name in params.unlearn.methods]
    stages += [("evaluate", name) for name in params.evaluate.models]
    for stage, name in stages:
        importlib.import_module(f"tasks.{stage}").run(params, *([name] if name else []), root=root)
