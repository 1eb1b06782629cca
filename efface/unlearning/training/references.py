"""Reference values: what a loss reads of the model before unlearning, without a second model.

With LoRA the model without its factors computes them for each batch. With full fine-tuning they are computed
once before training and stored on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from efface.encoding import Encoder, Inputs, to_device
from efface.errors import ArtifactError
from efface.unlearning.method import Quantity

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from efface.models.lora import Adapter

References = Callable[[Sequence[int], Inputs], list[Tensor]]
"""Reference values of samples, given their indices and inputs, on the device of the inputs."""


@dataclass(frozen=True)
class ReferenceComputation:
    """Computes a method's reference quantity.

    Attributes:
        model: the current model, in evaluation mode during the computation.
        quantity: the quantity to compute.
        settings: the method's settings.
        autocast: creates the context of a forward pass.
        adapter: LoRA factors to switch off during the computation.
    """

    model: PreTrainedModel
    quantity: Quantity
    settings: Any
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    adapter: Adapter | None = None

    @torch.no_grad()
    def __call__(self, indices: Sequence[int], inputs: Inputs) -> list[Tensor]:
        """The quantity of each sample of the inputs, float32; the indices are ignored."""
        training = self.model.training
        self.model.eval()
        with self.autocast(), nullcontext() if self.adapter is None else self.adapter.disabled():
            values = self.quantity(self.model, inputs, self.settings)
        self.model.train(training)
        return [value.float() for value in values]


class CachedReferences:
    """Reference values computed at once and read back from disk; values in the folder are not recomputed.

    Args:
        computation: how to compute them.
        encoder: the samples.
        indices: the samples whose values are needed.
        batch_size: samples per forward pass; changes the values by rounding only.
        folder: folder for this computation only.
    """

    def __init__(
        self,
        computation: ReferenceComputation,
        encoder: Encoder,
        indices: Sequence[int],
        *,
        batch_size: int,
        folder: Path,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        device = next(computation.model.parameters()).device
        self._file_of: dict[int, Path] = {}
        for multimodal in (True, False):
            group = [i for i in indices if (encoder.samples[i].image_bytes is not None) == multimodal]
            for start in range(0, len(group), batch_size):
                batch = group[start : start + batch_size]
                file = folder / f"{batch[0]}-{batch[-1]}.safetensors"
                self._file_of |= dict.fromkeys(batch, file)
                if file.exists():
                    continue
                values = computation(batch, to_device(encoder.batch(batch), device))
                partial = file.with_suffix(".partial")
                save_file({str(i): v.cpu().clone() for i, v in zip(batch, values, strict=True)}, partial)
                partial.rename(file)

    def __call__(self, indices: Sequence[int], inputs: Inputs) -> list[Tensor]:
        """The values of some samples.

        Raises:
            ArtifactError: if a file is damaged.
        """
        device = inputs["input_ids"].device
        values = []
        for index in indices:
            file = self._file_of[index]
            try:
                with safe_open(file, framework="pt") as tensors:
                    values.append(tensors.get_tensor(str(index)).to(device))
            except (OSError, SafetensorError) as error:
                raise ArtifactError(
                    f"{file} is damaged ({error}); delete the folder {file.parent} to recompute it"
                ) from error
        return values
