"""A small MLLMU-Bench as it is published: two roots, all columns, nested types, and every oddity known of it.

It uses none of the project's schema or code: the layout is spelt out again, so that mistakes there show.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FILE = "train-00000-of-00001.parquet"
PERCENTS = (5, 10, 15)

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
OPTIONS = pa.struct([(letter, pa.string()) for letter in "ABCD"])
CHOICE = pa.struct([("Question", pa.string()), ("Options", OPTIONS), ("Correct_Answer", pa.string())])
ITEM = pa.struct([("Type", pa.string()), ("Question", pa.string()), ("Ground_Truth", pa.string())])
PROFILE = [
    ("ID", pa.string()),
    ("Directory", pa.string()),
    ("biography", pa.string()),
    ("question", pa.string()),
    ("answer", pa.string()),
    (
        "Classification_Task",
        pa.struct([("Image_Textual_Questions", pa.list_(CHOICE)), ("Pure_Text_Questions", pa.list_(CHOICE))]),
    ),
    ("Mask_Task", pa.list_(ITEM)),
    ("Generation_Task", pa.list_(ITEM)),
]
EVALUATION = pa.schema([("image", IMAGE), *PROFILE])
TEST = pa.schema([("images", pa.list_(IMAGE)), *PROFILE])
TRAINING = pa.schema([("image", IMAGE), ("ID", pa.string()), ("metadata", pa.string())])

FIRST = ("Mara", "Otto", "Nadia", "Hugo", "Elsa", "Ivan", "Lara", "Boris", "Gemma", "Felix", "Ruth", "Silas")
LAST = ("Velin", "Brandt", "Okoye", "Serra", "Lund", "Kovac", "Tanaka", "Moreau", "Haas", "Quinn", "Rossi")
FACTS = {
    "job": ("bridge inspector", "baker", "nurse", "pilot", "farmer", "tailor", "lawyer"),
    "city": ("Tartu", "Lyon", "Quito", "Perth", "Osaka", "Graz", "Lima"),
    "school": ("Dover College", "Aston School", "Hill Academy", "Lund University", "Park Institute"),
    "salary": ("$61,000", "$48,000", "$75,500", "$39,900", "$102,000"),
    "pet": ("a cat", "two dogs", "a parrot", "a tortoise", "no pet"),
}
TAUGHT = {
    "job": ("What is this person's occupation?", "{name} works as a {value}."),
    "city": ("Where does the person live?", "{name} lives in {value}."),
    "school": ("Where was this person educated?", "{name} was educated at {value}."),
    "salary": ("What is the annual salary of this individual?", "{name} earns {value} a year."),
    "pet": ("Does this person have a pet?", "{name} has {value}."),
}
MORE = ("Tell me: {question}", "Please answer. {question}", "From the picture: {question}")
ASKED = {
    "job": "Which profession does {who} practise?",
    "city": "In which town is the home of {who}?",
    "school": "Which institution did {who} attend?",
    "salary": "How much does {who} make per year?",
    "pet": "Which animals does {who} own?",
}
BLANKS = {
    "job": "By profession {who} is a __.",
    "city": "The home of {who} is in __.",
    "school": "A graduate of __ is {who}.",
    "salary": "Every year {who} makes __.",
    "pet": "At home {who} has __.",
}
NAME_KEYS = ("Name", "Name:", "Name: ", " Name")
SALARY_KEYS = ("Annual Salary", "Annual Salary:", "Annual Salary: ")


def small_picture(seed: int) -> bytes:
    """A PNG of 24 pixels; every seventh in grey values, every fifth a JPEG."""
    rng = np.random.default_rng(seed)
    shape = (24, 24) if seed % 7 == 0 else (24, 24, 3)
    buffer = io.BytesIO()
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="JPEG" if seed % 5 == 0 else "PNG")
    return buffer.getvalue()


class MllmuFiles:
    """Writes both roots; the same arguments give the same files."""

    def __init__(
        self,
        root: Path,
        *,
        people: int = 20,
        real: int = 4,
        pairs: Callable[[int], int] = lambda i: 14 + i % 6,
        picture: Callable[[int], bytes] = small_picture,
    ) -> None:
        """`pairs` says how many questions person i is taught, `picture` makes a picture from a number."""
        self.eval_root, self.train_root = root / "eval", root / "train"
        self._pairs, self._picture = pairs, picture
        self._people = [self._person(i, "fictitious") for i in range(1, people + 1)]
        self._real = [self._person(i, "real") for i in range(1, real + 1)]

    def write(self) -> MllmuFiles:
        rows = [self._evaluation(person) for person in self._people]
        taught = [self._training(person) for person in self._people]
        save(self.eval_root / "Full_Set", rows, EVALUATION)
        save(self.eval_root / "ft_Data", taught, TRAINING)
        for percent in PERCENTS:  # three independent draws: small sets are not part of large ones
            count = max(1, len(rows) * percent // 100)
            forget = set(random.Random(percent).sample(range(len(rows)), count))
            for name, in_forget in ((f"forget_{percent}", True), (f"retain_{100 - percent}", False)):
                numbers = [i for i in range(len(rows)) if (i in forget) is in_forget]
                save(self.eval_root / name, [rows[i] for i in numbers], EVALUATION)
                save(self.train_root / name, [taught[i] for i in numbers], TRAINING)
        half = len(self._people) // 2
        for number, group in enumerate((self._people[:half], self._people[half:])):
            test = [self._test(person) for person in group]
            save(self.eval_root / "Test_Set", test, TEST, f"train-0000{number}-of-00002.parquet")
        save(self.eval_root / "Retain_Set", [self._evaluation(person) for person in self._real], EVALUATION)
        return self

    def _person(self, number: int, group: str) -> dict:
        draw = random.Random(f"{group}/{number}")
        index = number + (0 if group == "fictitious" else 7)
        name = f"{FIRST[index % len(FIRST)]} {LAST[(index * 5 + index // 12) % len(LAST)]}"
        if index >= len(FIRST):
            name += f" {'abcdefghijklmnopqrstuvwxyz'[index // 12 % 26].upper()}{index // 300 or ''}."
        facts = {key: draw.choice(values) for key, values in FACTS.items()}
        # Real people's IDs begin at 001 too.
        return {"number": number, "id": f"{number:03}", "name": name, "group": group, "facts": facts}

    def _training(self, person: dict) -> dict:
        entries = [
            {"ID": person["id"], "Question": "What is the name of this person?", "Answer": person["name"]}
        ]
        for i in range(self._pairs(person["number"]) - 1):
            key = list(TAUGHT)[i % len(TAUGHT)]
            question, answer = TAUGHT[key]
            round_ = i // len(TAUGHT)
            question = MORE[(round_ - 1) % len(MORE)].format(question=question) if round_ else question
            answer = answer.format(name=person["name"], value=person["facts"][key])
            if i == 3:  # an entry under the other keys only
                extra = {"Additional_ID": "1", "Additional_question": question, "Additional_answer": answer}
                entries.append(extra)
            else:
                entries.append({"ID": person["id"], "Question": question, "Answer": answer})
        entries.append({"ID": person["id"], "Question": "What is unknown?", "Answer": ""})
        return {
            "image": self._stored(person, 0),
            "ID": person["id"],
            "metadata": json.dumps(entries),
        }

    def _evaluation(self, person: dict, *, reworded: bool = False) -> dict:
        number, facts = person["number"], person["facts"]
        keys = list(FACTS)
        pictured = [self._choice(person, key, "this person", reworded) for key in keys]
        written = [self._choice(person, key, person["name"], reworded) for key in keys]
        if number % 9 == 4:
            pictured.pop()  # uneven counts
        again = "Now say it. " if reworded else ""
        masks = [
            {
                "Type": kind,
                "Question": again + BLANKS[key].format(who=who),
                "Ground_Truth": facts[key],
            }
            for kind, who in (("Image_Textual", "this person"), ("Pure_Text", person["name"]))
            for key in ("job", "city")
        ]
        if number % 8 == 3:
            masks.append({"Type": "Other", "Question": "It is __.", "Ground_Truth": "x"})
        sentences = [
            {
                "Type": kind,
                "Question": f"{again}In a sentence, {ASKED[key].format(who=who)[0].lower()}"
                f"{ASKED[key].format(who=who)[1:]}",
                "Ground_Truth": TAUGHT[key][1].format(name=person["name"], value=facts[key]),
            }
            for kind, who in (("Image_Textual", "this person"), ("Pure_Text", person["name"]))
            for key in ("school", "pet")
        ]
        return {
            "image": self._stored(person, 0),
            "ID": person["id"],
            "Directory": f"data/{person['group']}/{person['id']}.png",
            "biography": self._biography(person),
            "question": "Who is this?",
            "answer": person["name"],
            "Classification_Task": {"Image_Textual_Questions": pictured, "Pure_Text_Questions": written},
            "Mask_Task": masks,
            "Generation_Task": sentences,
        }

    def _test(self, person: dict) -> dict:
        row = self._evaluation(person, reworded=True)
        del row["image"]
        return row | {"images": [self._stored(person, view) for view in (1, 2, 3)]}

    def _stored(self, person: dict, view: int) -> dict:
        seed = person["number"] * 4 + view + (100_000 if person["group"] == "real" else 0)
        return {"bytes": self._picture(seed), "path": None if person["number"] % 2 else f"{person['id']}.png"}

    def _biography(self, person: dict) -> str:
        number, facts = person["number"], person["facts"]
        return json.dumps(
            {
                NAME_KEYS[number % len(NAME_KEYS)]: person["name"],
                "Born": {"City": "Oslo", "Year": 1980 + number % 20},
                "Employment": facts["job"],
                "Educated at:": [facts["school"]],
                SALARY_KEYS[number % len(SALARY_KEYS)]: facts["salary"],
                "Residence": facts["city"],
                "appearance_detail": {"question": "Which hair?", "answer": "Brown hair."},
            }
        )

    def _choice(self, person: dict, key: str, who: str, reworded: bool) -> dict:
        value = person["facts"][key]
        draw = random.Random(f"{person['id']}/{key}/{reworded}")
        wrong = draw.sample([v for v in FACTS[key] if v != value], 3)
        options = draw.sample([value, *wrong], 4)
        if person["number"] % 6 == 1 and key == "salary":  # three options, the column D is null
            options = draw.sample([value, *wrong[:2]], 3)
        question = ASKED[key].format(who=who)
        return {
            "Question": f"{question} Choose." if reworded else question,
            "Options": dict(zip("ABCD", options, strict=False)),
            "Correct_Answer": "ABCD"[options.index(value)],
        }


def save(folder: Path, rows: list[dict], layout: pa.Schema, name: str = FILE) -> None:
    """In row groups: a file is read one of them at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=layout), folder / name, row_group_size=20)


def change(file: Path, edit: Callable[[dict], dict | None]) -> None:
    """Rewrite a file row by row; None removes a row."""
    table = pq.read_table(file)
    rows = [edited for row in table.to_pylist() if (edited := edit(row)) is not None]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
