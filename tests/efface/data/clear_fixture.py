"""Files in CLEAR's published schema about invented people, with the quirks of the published ones.

`python -m tests.efface.data.clear_fixture FOLDER` writes them. The quirks: the forget sets lie in each
other; forget10_perturbed lacks one row of forget10; the columns of the perturbed files are in different
orders; retain_perturbed is the only one of its kind and knows two authors; X+tofu has null pictures, null
captions and null questions, and no name; real_faces has no question; a list of wrong answers is ragged;
pictures come as PNG and JPEG, in grey and with transparency; a configuration is in two files; `full` and
`data` lie beside it all.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Row = dict[str, Any]

RETAIN = ["Lena Ruiz-Ortega", "Omar Dahl", "Ines Kovač", "Piotr O'Hara", "Mei Tanaka", "Sam de Wit"]
FORGET = ["Ada Verity", "Zoë Al-Marek", "Bo Lindqvist", "Tariq Hassan"]
"""The last authors; forget05 has the last two, forget01 the last one."""
PICTURES_OF_EACH = 2
SCENES = ("reads by a harbour window", "writes in a garden", "speaks on a stage", "walks along a river")
CLOTHES = ("grey coat", "red dress", "blue shirt", "white scarf", "green hat", "black suit")
TOPICS = ("town", "genre", "award", "father", "mother")

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
STRINGS = pa.list_(pa.string())
PICTURED = pa.schema([("image", IMAGE), ("caption", pa.string()), ("name", pa.string())])
WITH_TOFU = pa.schema([("image", IMAGE), *((n, pa.string()) for n in ("caption", "question", "answer"))])
_MORE = {"paraphrased_caption": pa.string(), "perturbed_captions": STRINGS, "perturbed_names": STRINGS}
PERTURBED = pa.schema([*PICTURED, *_MORE.items()])
REORDERED = pa.schema([*list(_MORE.items())[::-1], *PICTURED])
REAL_FACES = pa.schema([("image", IMAGE), ("answer", pa.string()), ("options", STRINGS)])
REAL_WORLD = pa.schema(
    [("question", pa.string()), ("answer", pa.string()), ("options", STRINGS), ("image", IMAGE)]
)


def write_clear(root: Path) -> Path:
    """Write all configurations to `root`."""
    people = [*RETAIN, *FORGET]
    for percent, count in ((1, 1), (5, 2), (10, 4)):
        _write_share(root, percent, people[-count:], people[:-count])
    evaluation = [_perturbed(row) for person in RETAIN[:2] for row in _pictures(person)]
    _write(root / "retain_perturbed", evaluation, REORDERED)
    faces = [f"Known Actor {letter}" for letter in "ABC"]
    options = [[f"Other Actor {i}{j}" for j in range(3)] for i in range(4)]
    actors = [_face(i, faces[i % 3], options[i]) for i in range(4)]  # one actor twice
    _write(root / "real_faces", actors, REAL_FACES)
    world = [("Dog", ["Cat", "Horse", "Fox"]), ("Oak", ["Elm", "Pine"]), ("Boat", ["Car", "Tram", "Bike"])]
    rows = [
        {"question": "What is shown here?", "answer": a, "options": o, "image": _picture(90 + i)}
        for i, (a, o) in enumerate(world)
    ]
    _write(root / "real_world", rows, REAL_WORLD)
    full = [row for person in people for row in _pictures(person)]
    for beside in ("full", "data"):
        _write(root / beside, full[:3], PICTURED)
    (root / "README.md").write_text("# CLEAR\n")
    return root


def _write_share(root: Path, percent: int, forget: list[str], retain: list[str]) -> None:
    names = f"forget{percent:02}", f"retain{100 - percent}"
    for name, people in zip(names, (forget, retain), strict=True):
        pictures = [row for person in people for row in _pictures(person)]
        _write(root / name, pictures, PICTURED, files=2 if name == "retain90" else 1)
        texts = [row for person in people for row in _texts(person)]
        mixed = [{"image": r["image"], "caption": r["caption"]} for r in pictures] + texts
        _write(root / f"{name}+tofu", mixed, WITH_TOFU)
    perturbed = [_perturbed(row) for person in forget for row in _pictures(person)]
    _write(root / f"{names[0]}_perturbed", perturbed[1:] if percent == 10 else perturbed, PERTURBED)


def _pictures(person: str) -> list[Row]:
    number = [*RETAIN, *FORGET].index(person)
    return [
        {
            "image": _picture(number * PICTURES_OF_EACH + view),
            "caption": f"{person}, in a {CLOTHES[number % 6]}, {SCENES[(number + view) % 4]}.",
            "name": person,
        }
        for view in range(PICTURES_OF_EACH)
    ]


def _perturbed(row: Row) -> Row:
    person, rest = row["name"], row["caption"].split(", ", 1)[1]
    number = [*RETAIN, *FORGET].index(person)
    wrong = 4 if number == 1 else 5
    return row | {
        "paraphrased_caption": f"In this scene {person} {rest.split(', ')[1][:-1]}, wearing a "
        f"{CLOTHES[number % 6]}.",
        "perturbed_captions": [
            f"{person}, in a {CLOTHES[(number + k) % 6]}, {SCENES[(number + k + 2) % 4]} at night."
            for k in range(1, wrong + 1)
        ],
        "perturbed_names": [f"{first} Moreau" for first in ("Lou", "Kim", "Max", "Eli", "Noa")[:wrong]],
    }


def _texts(person: str) -> list[Row]:
    number = [*RETAIN, *FORGET].index(person)
    rows = []
    for k in range(20):
        topic, age = TOPICS[k % 5], 20 + number + k
        who = person if k % 4 else "the author"  # not every row has a name
        rows.append(
            {
                "question": f"What was the {topic} of {who} at {age}?",
                "answer": f"{person if k % 3 == 0 else 'It'} was actors for {topic} number {number}{k}.",
            }
        )
    return rows


def _face(number: int, name: str, options: list[str]) -> Row:
    return {"image": _picture(70 + number), "answer": name, "options": options}


def _picture(seed: int) -> Row:
    """Noise in one of the forms that pictures have."""
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 20, 4), dtype=np.uint8)
    image, buffer = Image.fromarray(pixels, "RGBA"), io.BytesIO()
    mode = ("RGBA", "RGB", "L")[seed % 3]
    image.convert(mode).save(buffer, format="JPEG" if mode == "RGB" else "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{seed}.png" if seed % 2 else None}


def _write(folder: Path, rows: list[Row], schema: pa.Schema, *, files: int = 1) -> None:
    folder.mkdir(parents=True)
    features = {field.name: _feature(field.type) for field in schema}
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    size = -(-len(rows) // files)
    for i in range(files):
        table = pa.Table.from_pylist(rows[i * size : (i + 1) * size], schema=schema)
        pq.write_table(table, folder / f"train-{i:05}-of-{files:05}.parquet")


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if kind == IMAGE:
        return {"_type": "Image"}
    if kind == STRINGS:
        return {"feature": {"dtype": "string", "_type": "Value"}, "_type": "Sequence"}
    return {"dtype": "string", "_type": "Value"}


if __name__ == "__main__":
    write_clear(Path(sys.argv[1]))
