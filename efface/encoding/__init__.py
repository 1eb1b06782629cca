"""From samples to padded model inputs, through the model's own processor.

The prompt is the chat template applied to a user turn; the full text, applied to a user and an assistant
turn, goes through the processor with the pictures. Labels are the tokens after the prompt: prompt, picture
and padding positions are -100, so only the answer and its end token enter a loss.
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
