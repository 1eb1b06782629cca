"""Checkpoints from which training goes on exactly where it stopped.

Two files, never pickle: ``state.safetensors`` (weights, optimizer moments, random state, extra tensors) and
``state.json`` (step, history, key). A checkpoint is written beside the old one and renamed onto it, so a
process killed at any moment leaves a whole one.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from efface.errors import ArtifactError


@dataclass
class TrainingState:
    """All that a run needs to go on, besides the samples.

    Attributes:
        step: optimizer steps done.
        history: one record per step.
        extra: tensors that belong to the run, such as reference log-probabilities.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    extra: dict[str, Tensor] = field(default_factory=dict)


class Checkpoints:
    """The checkpoint of one run in a folder of its own.

    Args:
        folder: where the checkpoint lives.
        key: digest of everything the run depends on (method, settings, data, start model).
    """

    def __init__(self, folder: Path, *, key: str):
        self.folder = folder
        self.key = key

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainingState) -> None:
        """Replace the checkpoint."""
        partial = self.folder.with_name(self.folder.name + ".partial")
        previous = self.folder.with_name(self.folder.name + ".previous")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        tensors = {f"model/{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in moments.items()
            }
        tensors |= {f"extra/{name}": value for name, value in state.extra.items()}
        tensors["random/cpu"] = torch.get_rng_state()
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
            partial / "state.safetensors",
        )
        record = {"key": self.key, "step": state.step, "history": state.history}
        (partial / "state.json").write_text(json.dumps(record))
        shutil.rmtree(previous, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(previous)
        partial.rename(self.folder)
        shutil.rmtree(previous, ignore_errors=True)

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState | None:
        """Put weights, moments and random state back; None when there is no checkpoint.

        Raises:
            ArtifactError: if the checkpoint is damaged or belongs to another run.
        """
        folder = self._whole()
        if folder is None:
            return None
        try:
            record = json.loads((folder / "state.json").read_text())
            tensors = load_file(folder / "state.safetensors")
        except (OSError, json.JSONDecodeError, SafetensorError) as error:
            raise ArtifactError(
                f"the checkpoint in {folder} is damaged ({error}); delete the folder to train from the start"
            ) from error
        if record["key"] != self.key:
            raise ArtifactError(
                f"the checkpoint in {folder} belongs to a run with other settings or data (key "
                f"{record['key'][:12]}, this run "
                f"{self.key[:12]}); delete the folder to train from the start"
            )
        _restore(model, optimizer, tensors)
        extra = {name.removeprefix("extra/"): t for name, t in tensors.items() if name.startswith("extra/")}
        return TrainingState(step=record["step"], history=record["history"], extra=extra)

    def remove(self) -> None:
        """Delete the checkpoint; the run is over."""
        for suffix in ("", ".partial", ".previous"):
            shutil.rmtree(self.folder.with_name(self.folder.name + suffix), ignore_errors=True)

    def _whole(self) -> Path | None:
        # Killed between the two renames of `save`, the previous checkpoint is the whole one.
        previous = self.folder.with_name(self.folder.name + ".previous")
        return next((folder for folder in (self.folder, previous) if (folder / "state.json").is_file()), None)


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Any]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(tensors[f"model/{name}"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, field_name = name.split("/")
            moments.setdefault(int(index), {})[field_name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    torch.set_rng_state(tensors["random/cpu"])
