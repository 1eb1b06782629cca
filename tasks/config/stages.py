"""The stages of the pipeline, in the order in which they run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tasks.config.root import Params


@dataclass(frozen=True)
class Stage:
    """One stage: `python -m tasks NAME`, a module of `tasks` with a function `run`.

    Attributes:
        name: of the command, the run records, and the stage in dvc.yaml.
        summary: what it does, for `--help`.
        per: kind of name that the command takes, to run once for each; None: runs once.
        gpu: whether it computes with a model.
        shared: whether several processes can share its work.
        module: file in `tasks`; by default its name.
        dvc: stages of dvc.yaml that run it; by default its name.
        seconds: time of one run with the default parameters on two cores; only the ratios matter.
    """

    name: str
    summary: str
    per: Literal["mask", "method", "model"] | None = None
    gpu: bool = False
    shared: bool = False
    seconds: int = 0
    module: str = ""
    dvc: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "module", self.module or self.name)
        object.__setattr__(self, "dvc", self.dvc or (self.name,))


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("params", "Check params.yaml."),
        Stage("benchmark", "Generate the embedded benchmark, or import a published one.", seconds=60),
        Stage("prepare", "Build one checked table of samples.", seconds=10),
        Stage("split", "Choose the people to forget.", seconds=5),
        Stage("base", "Train the base model, or point to an existing one.", gpu=True, seconds=300),
        Stage(
            "vanilla",
            "Fine-tune the base model on all people.",
            gpu=True,
            shared=True,
            module="finetune",
            seconds=430,
        ),
        Stage(
            "retrained",
            "Fine-tune the base model on the retain people only.",
            gpu=True,
            shared=True,
            module="finetune",
            seconds=470,
        ),
        Stage("saliency", "Compute the saliency mask.", gpu=True, shared=True, seconds=30),
        Stage(
            "control",
            "Build a control mask of the saliency mask's size.",
            per="mask",
            gpu=True,
            shared=True,
            seconds=30,
        ),
        Stage("importance", "Score every MLP neuron.", gpu=True, shared=True, seconds=45),
        Stage("prune", "Unlearn by zeroing neurons, with one method.", per="method", gpu=True, seconds=2),
        Stage(
            "unlearn",
            "Unlearn by training, with one method.",
            per="method",
            gpu=True,
            shared=True,
            seconds=130,
        ),
        Stage(
            "score",
            "Score base or vanilla on all people, for every split.",
            per="model",
            gpu=True,
            seconds=90,
        ),
        Stage(
            "evaluate",
            "Score one model on every question of the split.",
            per="model",
            gpu=True,
            dvc=("evaluate", "evaluate_unlearned", "evaluate_pruned"),
            seconds=42,
        ),
        Stage(
            "attack",
            "Attack one model to bring back what it was made to forget.",
            per="model",
            gpu=True,
            seconds=200,
        ),
        Stage(
            "lmms_eval",
            "Score one model on published benchmarks with lmms-eval.",
            per="model",
            gpu=True,
            seconds=300,
        ),
        Stage("report", "Write data/report from all scores.", seconds=15),
    )
}


def names_of(stage: Stage, params: Params) -> list[str]:
    """The masks, methods or models that a stage runs for; none for a stage that runs once."""
    from tasks.config.root import ORIGINAL, SHARED_MODELS

    names: dict[str, list[str]] = {
        "control": list(params.saliency.controls),
        "unlearn": list(params.unlearn.methods),
        "prune": list(params.prune.methods),
        "score": list(SHARED_MODELS),
        "evaluate": [*params.models, ORIGINAL],
        "attack": list(params.models),
        "lmms_eval": list(params.models),
    }
    return names.get(stage.name, [])
