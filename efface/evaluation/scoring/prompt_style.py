"""Prompt style: the wording of questions that a model answers freely, and few-shot examples before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from efface.data.samples import Sample
from efface.encoding import Inputs, encode_prompts
from efface.errors import ModelError
from efface.evaluation.scoring.question_prompts import llava_prompt, shots_for, user_turn

if TYPE_CHECKING:
    from transformers import ProcessorMixin

_IMAGE = "<image>"


@dataclass(frozen=True)
class PromptStyle:
    """Wording of the questions that a model answers freely; likelihoods always use the bare question."""

    benchmark: str = "avatars"
    """Benchmark whose wording ``published`` uses."""
    style: str = "bare"
    """``bare``, ``published`` or ``published_llava``; see `efface.evaluation.scoring.question_prompts`."""
    shots: tuple[Sample, ...] = ()
    """Solved questions from `draw_shots`; for ``published_llava`` only."""

    def is_bare(self, sample: Sample) -> bool:
        """Whether the prompt of this sample is just its question."""
        if self.style == "published_llava":
            return False
        return user_turn(sample, benchmark=self.benchmark, style=self.style) == sample.question

    def prompts(self, processor: ProcessorMixin, samples: Sequence[Sample]) -> list[Inputs]:
        """Processor output of the prompts, for generation; samples all with or all without a picture.

        Raises:
            ModelError: if a whole LLaVA string is used with a family that has another picture token, or with
                several pictures.
        """
        if self.style == "published_llava":
            return [self._whole(processor, sample) for sample in samples]
        turns = [user_turn(sample, benchmark=self.benchmark, style=self.style) for sample in samples]
        return encode_prompts(processor, turns, [sample.images for sample in samples])

    def _whole(self, processor: ProcessorMixin, sample: Sample) -> Inputs:
        token = getattr(processor, "image_token", _IMAGE)
        if token != _IMAGE:
            raise ModelError(
                f"{type(processor).__name__} has the picture token {token!r}, and the style "
                f"published_llava writes {_IMAGE!r}; use evaluate.prompts: published for this family"
            )
        if sample.more_image_bytes:
            raise ModelError(
                f"sample {sample.sample_id} has {len(sample.encoded_images)} pictures, and the style "
                "published_llava writes one; use evaluate.prompts: published for such samples"
            )
        shots = shots_for(sample, self.shots)
        pictures = [row.image for row in (*shots, sample) if row.image_bytes is not None]
        images = {"images": pictures} if pictures else {}
        return dict(processor(text=[llava_prompt(sample, shots)], return_tensors="pt", **images))
