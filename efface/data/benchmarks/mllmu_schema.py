"""The columns of MLLMU-Bench's parquet files, and the columns Efface adds to their right.

MLLMU-Bench comes as two roots with the same folder names: evaluation files (`Classification_Task` and so on)
and training files (`metadata`, question-answer pairs as a JSON string). `ft_Data` lies in the evaluation root
and is a training file. The added columns hold what the published files do not say; a reader takes null where
they are missing.
"""

from __future__ import annotations

import pyarrow as pa

from efface.data.parquet import IMAGE

_OPTIONS = pa.struct([(letter, pa.string()) for letter in "ABCD"])
_QUESTION = pa.struct([("Question", pa.string()), ("Options", _OPTIONS), ("Correct_Answer", pa.string())])
_ITEM = pa.struct([("Type", pa.string()), ("Question", pa.string()), ("Ground_Truth", pa.string())])
_STRINGS = pa.list_(pa.string())

IMAGE_QUESTIONS, TEXT_QUESTIONS = "Image_Textual_Questions", "Pure_Text_Questions"
IMAGE_TYPE, TEXT_TYPE = "Image_Textual", "Pure_Text"

_PROFILE = [
    ("ID", pa.string()),
    ("Directory", pa.string()),
    ("biography", pa.string()),
    ("question", pa.string()),
    ("answer", pa.string()),
    (
        "Classification_Task",
        pa.struct([(IMAGE_QUESTIONS, pa.list_(_QUESTION)), (TEXT_QUESTIONS, pa.list_(_QUESTION))]),
    ),
    ("Mask_Task", pa.list_(_ITEM)),
    ("Generation_Task", pa.list_(_ITEM)),
]
_EVALUATION_EXTRA = [
    # Attribute of each question, list by list in the order of the columns it belongs to.
    (
        "attributes",
        pa.struct(
            [(key, _STRINGS) for key in (IMAGE_QUESTIONS, TEXT_QUESTIONS, "Mask_Task", "Generation_Task")]
        ),
    ),
    ("paraphrases", _STRINGS),  # one per Generation_Task entry
    ("wrong_answers", pa.list_(_STRINGS)),  # likewise
]

EVALUATION = pa.schema([("image", IMAGE), *_PROFILE, *_EVALUATION_EXTRA])
"""Full_Set, forget_*, retain_*, Retain_Set (the real people), Holdout_Set."""
EVALUATION_IMAGES = pa.schema([("images", pa.list_(IMAGE)), *_PROFILE, *_EVALUATION_EXTRA])
"""Test_Set: several pictures a row."""
TRAINING = pa.schema(
    [("image", IMAGE), ("ID", pa.string()), ("metadata", pa.string()), ("attributes", _STRINGS)]
)
"""ft_Data, the training root's forget_* and retain_*, Base_Data; `attributes` follows `metadata`."""
SKILLS = pa.schema(
    [
        ("image", IMAGE),
        ("ID", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("options", _STRINGS),
        ("attribute", pa.string()),
    ]
)
"""Skills_Train and Skills_Test: questions about how strangers look."""
STRANGER_LABELS = ("hair", "hair_colour", "skin", "facial_hair", "glasses", "clothes_colour")
STRANGERS = pa.schema([("image", IMAGE), *((label, pa.string()) for label in STRANGER_LABELS)])
"""Strangers: pictures with the class of each visible attribute."""
