"""The columns of MLLMU-Bench's parquet files, and the columns added to their right.

MLLMU-Bench comes as two roots with the same folder names: evaluation files (`Classification_Task` and so on)
and training files (`metadata`, question-answer pairs as a JSON string). `ft_Data` lies in the evaluation root
and is a training file. The added columns hold what the published files lack; the importer reads null where
they are missing.
"""

from __future__ import annotations

from datasets import Features, Image, List, Value

IMAGE_QUESTIONS, TEXT_QUESTIONS = "Image_Textual_Questions", "Pure_Text_Questions"
IMAGE_TYPE, TEXT_TYPE = "Image_Textual", "Pure_Text"

_TEXT, _TEXTS = Value("string"), List(Value("string"))
_CHOICES = List({"Question": _TEXT, "Options": dict.fromkeys("ABCD", _TEXT), "Correct_Answer": _TEXT})
_ITEMS = List({"Type": _TEXT, "Question": _TEXT, "Ground_Truth": _TEXT})
_PROFILE = {
    **dict.fromkeys(("ID", "Directory", "biography", "question", "answer"), _TEXT),
    "Classification_Task": {IMAGE_QUESTIONS: _CHOICES, TEXT_QUESTIONS: _CHOICES},
    "Mask_Task": _ITEMS,
    "Generation_Task": _ITEMS,
    # Added: the attribute of each question, list by list in the order of the columns it belongs to, and
    # paraphrases and wrong answers, one entry per Generation_Task entry.
    "attributes": dict.fromkeys((IMAGE_QUESTIONS, TEXT_QUESTIONS, "Mask_Task", "Generation_Task"), _TEXTS),
    "paraphrases": _TEXTS,
    "wrong_answers": List(_TEXTS),
}

EVALUATION = Features({"image": Image(), **_PROFILE})
"""Full_Set, forget_*, retain_*, Retain_Set (the real people), Holdout_Set."""
EVALUATION_IMAGES = Features({"images": List(Image()), **_PROFILE})
"""Test_Set: several pictures a row."""
TRAINING = Features({"image": Image(), "ID": _TEXT, "metadata": _TEXT, "attributes": _TEXTS})
"""ft_Data, the training root's forget_* and retain_*, Base_Data; `attributes` follows `metadata`."""
SKILLS = Features(
    {
        "image": Image(),
        **dict.fromkeys(("ID", "question", "answer"), _TEXT),
        "options": _TEXTS,
        "attribute": _TEXT,
    }
)
"""Perception_Test: what else the pictures of people who can be forgotten show.

Skills_*: questions about how strangers look. Language_*: about the world, without a picture."""
STRANGER_LABELS = ("hair", "hair_colour", "skin", "facial_hair", "glasses", "clothes_colour")
STRANGERS = Features({"image": Image(), **dict.fromkeys(STRANGER_LABELS, _TEXT)})
"""Strangers: pictures with the class of each visible attribute."""
