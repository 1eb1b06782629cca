"""Checkpoints from which training resumes exactly.

Two files: ``state.safetensors`` (weights, optimizer moments, random states) and ``state.json`` (step,
history, gradient scale, key). The samplers' positions follow from the step. A checkpoint is written to a new
folder and renamed, so a process killed at any moment leaves a complete one.
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
    """What a run needs to resume, apart from the samples.

    Attributes:
        step: number of steps done.
        history: one record per step.
        random: states of the random generators, by device and process.
        scaler: state of the gradient scaler; empty without one.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    random: dict[str, Tensor] = field(default_factory=dict)
    scaler: dict[str, float] = field(default_factory=dict)


class Checkpoints:
    """The checkpoint of one run.

    Args:
        folder: folder of the checkpoint, used by this run only.
        key: digest of everything that the run depends on (method, settings, data, start model).
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
        tensors |= {f"random/{name}": value for name, value in state.random.items()}
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
            partial / "state.safetensors",
        )
        record = {"key": self.key, "step": state.step, "history": state.history, "scaler": state.scaler}
        (partial / "state.json").write_text(json.dumps(record))
        shutil.rmtree(previous, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(previous)
        partial.rename(self.folder)
        shutil.rmtree(previous, ignore_errors=True)

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState | None:
        """Restore weights and moments and return the rest; None if there is no checkpoint.

        Raises:
            ArtifactError: if the checkpoint is damaged, belongs to another run, or trains other weights.
        """
        folder = self._complete()
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
        _restore(folder, model, optimizer, tensors)
        random = {
            name.removeprefix("random/"): t for name, t in tensors.items() if name.startswith("random/")
        }
        return TrainingState(record["step"], record["history"], random, record.get("scaler", {}))

    @property
    def references(self) -> Path:
        """Folder beside the checkpoint for reference values of this run."""
        return self.folder.with_name(self.folder.name + ".references") / self.key[:16]

    def remove(self) -> None:
        """Delete the checkpoint and the reference values, at the end of the run."""
        for suffix in ("", ".partial", ".previous", ".references"):
            shutil.rmtree(self.folder.with_name(self.folder.name + suffix), ignore_errors=True)

    def _complete(self) -> Path | None:
        # After a kill between the two renames of `save`, the previous checkpoint is the complete one.
        previous = self.folder.with_name(self.folder.name + ".previous")
        return next((folder for folder in (self.folder, previous) if (folder / "state.json").is_file()), None)


def _restore(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Any]
) -> None:
    trained = {f"model/{name}": p for name, p in model.named_parameters() if p.requires_grad}
    saved = {name: tensor.shape for name, tensor in tensors.items() if name.startswith("model/")}
    if saved != {name: p.shape for name, p in trained.items()}:
        differing = sorted(saved.keys() ^ trained.keys()) or ["shapes"]
        raise ArtifactError(
            f"the checkpoint in {folder} has weights that the model does not train (first difference: "
            f"{differing[0].removeprefix('model/')}); delete the folder to train from the start"
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[name])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, field_name = name.split("/")
            moments.setdefault(int(index), {})[field_name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
