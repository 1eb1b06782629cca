"""What the model before unlearning says of the samples, without keeping a second model.

Two ways. With LoRA the reference model is the model itself with its factors switched off, asked anew for
every batch. With full fine-tuning the quantities of all samples are measured once before training, and kept
on disk (safetensors, read back sample by sample) or, without a folder, in memory.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from efface.encoding import Encoder, Inputs, to_device
from efface.errors import ArtifactError
from efface.models.loading import weights_digest
from efface.unlearning.method import Quantity
from efface.unlearning.training.precision import Precision
from efface.unlearning.training.processes import Processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from efface.models.lora import Adapter

_SHARD_BYTES = 2**28


class References(Protocol):
    """Reference quantities of the samples of one encoder."""

    def of(self, indices: Sequence[int], inputs: Inputs) -> list[Tensor]:
        """Those of some samples, on the device of their ``inputs``."""


@dataclass(frozen=True)
class Question:
    """Which quantity of which samples, and how it is computed; of all samples if none are named as needed."""

    model: PreTrainedModel
    encoder: Encoder
    quantity: Quantity
    settings: Any
    precision: Precision
    batch_size: int
    needed: Sequence[int] | None = None

    @property
    def indices(self) -> Sequence[int]:
        """The samples to ask about."""
        return range(len(self.encoder.samples)) if self.needed is None else self.needed

    @torch.no_grad()
    def ask(self, inputs: Inputs) -> list[Tensor]:
        """The quantity under the model as it is now, in evaluation mode."""
        training = self.model.training
        self.model.eval()
        with self.precision.computing():
            values = self.quantity(self.model, inputs, self.settings)
        self.model.train(training)
        return [value.float() for value in values]

    def batches(self) -> Iterator[list[int]]:
        """Sample indices batch by batch, multimodal and text-only apart."""
        for multimodal in (True, False):
            samples = self.encoder.samples
            chosen = [i for i in self.indices if (samples[i].image_bytes is not None) == multimodal]
            for start in range(0, len(chosen), self.batch_size):
                yield chosen[start : start + self.batch_size]

    def key(self) -> str:
        """Digest of all that the answers depend on: weights, samples, processor, quantity and settings."""
        total = hashlib.sha256(weights_digest(self.model).encode())
        processor = self.encoder.processor
        name = f"{self.quantity.__module__}.{self.quantity.__qualname__}"
        template, written = processor.chat_template, repr(processor)
        about = [name, repr(self.settings), self.precision.name, template, written, [*self.indices]]
        total.update(json.dumps(about, sort_keys=True).encode())
        for sample in self.encoder.samples:
            total.update(repr((sample.sample_id, sample.question, sample.answer)).encode())
            for picture in sample.encoded_images or (b"",):
                total.update(hashlib.sha256(picture).digest())
        return total.hexdigest()


class AdapterOff:
    """References of a model with LoRA: the same model without its factors."""

    def __init__(self, question: Question, adapter: Adapter):
        self._question, self._adapter = question, adapter

    def of(self, indices: Sequence[int], inputs: Inputs) -> list[Tensor]:
        """Those of some samples, measured now."""
        off: AbstractContextManager[None] = self._adapter.disabled()
        with off:
            return self._question.ask(inputs)


class InMemory:
    """References measured now and kept in memory."""

    def __init__(self, question: Question):
        self._values = dict(_measured(question, list(question.batches())))

    def of(self, indices: Sequence[int], inputs: Inputs) -> list[Tensor]:
        """Those of some samples."""
        return [self._values[i].to(inputs["input_ids"].device) for i in indices]


class OnDisk:
    """References measured now, unless a folder named after their key already holds them.

    Args:
        question: what to measure.
        folder: holds one folder per key; several processes measure a share each and must all see it.
        processes: the processes that train together.

    Raises:
        ArtifactError: if a file in the folder is damaged.
    """

    def __init__(self, question: Question, folder: Path, processes: Processes):
        self._folder = folder / question.key()[:32]
        if not self._folder.is_dir():
            self._measure(question, processes)
        self._shard_of: dict[str, str] = {}
        for file in sorted(self._folder.glob("*.safetensors")):
            with _opened(file) as shard:
                self._shard_of |= dict.fromkeys(shard.keys(), file.name)

    def of(self, indices: Sequence[int], inputs: Inputs) -> list[Tensor]:
        """Those of some samples, read from disk."""
        device = inputs["input_ids"].device
        values = []
        for index in indices:
            with _opened(self._folder / self._shard_of[str(index)]) as shard:
                values.append(shard.get_tensor(str(index)).to(device))
        return values

    def _measure(self, question: Question, processes: Processes) -> None:
        partial = self._folder.with_name(self._folder.name + ".partial")
        if processes.main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        processes.wait()
        shard: dict[str, Tensor] = {}
        number = 0
        share = list(question.batches())[processes.rank :: processes.count]
        for index, value in _measured(question, share):
            shard[str(index)] = value
            if sum(tensor.nbytes for tensor in shard.values()) >= _SHARD_BYTES:
                save_file(shard, partial / f"{processes.rank}-{number}.safetensors")
                shard, number = {}, number + 1
        if shard:
            save_file(shard, partial / f"{processes.rank}-{number}.safetensors")
        processes.wait()
        if processes.main:
            partial.rename(self._folder)
        processes.wait()


def _measured(question: Question, batches: Sequence[Sequence[int]]) -> Iterator[tuple[int, Tensor]]:
    device = next(question.model.parameters()).device
    for indices in batches:
        values = question.ask(to_device(question.encoder.batch(indices), device))
        for index, value in zip(indices, values, strict=True):
            yield index, value.cpu().contiguous().clone()


def _opened(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"the reference file {file} is damaged ({error}); delete the folder {file.parent} to measure "
            "again"
        ) from error
