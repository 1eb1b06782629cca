"""From samples to padded model inputs, through the model's own processor.

The prompt is the chat template of a user turn, the full text that of a user and an assistant turn, which goes
through the processor with the pictures. Labels are what comes after the prompt's tokens: prompt, picture and
padding positions are -100, so only the answer and its end token are ever in a loss.
"""

from efface.encoding.batches import IGNORED, Inputs, collate, split, to_device
from efface.encoding.encoder import Encoder, draw, encode, encode_prompts
from efface.encoding.prompts import check_template, full_text, prompt_of

__all__ = [
    "IGNORED",
    "Encoder",
    "Inputs",
    "check_template",
    "collate",
    "draw",
    "encode",
    "encode_prompts",
    "full_text",
    "prompt_of",
    "split",
    "to_device",
]
