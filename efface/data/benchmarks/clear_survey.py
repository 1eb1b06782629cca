"""What CLEAR's files say before a picture is read: who there is, and whom each question in text is about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from efface.data.benchmarks import clear_files as files
from efface.data.benchmarks.clear_files import Place
from efface.data.benchmarks.reading import BadRows

QUESTIONS_PER_AUTHOR = 20
"""Rows of text are in blocks of so many, an author each."""

_ONE_REVISION = "use files of one revision"


@dataclass
class Survey:
    """Who there is; complete before any sample is made."""

    people: dict[str, list[str]]
    """`forget` and `retain` to names."""
    authors: dict[tuple[str, int], str] = field(default_factory=dict)
    """Split and index of a row of text to its author."""
    pictures: Counter[str] = field(default_factory=Counter)
    """Author to number of pictures to train on."""
    perturbed: set[tuple[str, str]] = field(default_factory=set)
    """Author and caption of each row of forgetNN_perturbed."""
    asked: set[str] = field(default_factory=set)
    """Authors who are asked about in pictures."""
    faces: set[str] = field(default_factory=set)
    """Names of the real people."""
    worldly: int = 0
    """Questions about the world."""


def survey(root: Path, percent: int, bad_rows: BadRows) -> Survey:
    """Go through the texts of all configurations of a share to forget.

    Raises:
        DataError: if an author is both to be forgotten and to be retained, or it cannot be told whom a row of
            text is about, and bad rows are not to be skipped.
    """
    forget, retain = files.forget_name(percent), files.retain_name(percent)
    found = Survey({"forget": [], "retain": []})
    for split, configuration in (("forget", forget), ("retain", retain)):
        _meet(found, root, configuration, split, bad_rows)
    for split, configuration in (("forget", f"{forget}+tofu"), ("retain", f"{retain}+tofu")):
        _attribute(found, root, configuration, split, bad_rows)
    for configuration in (f"{forget}_perturbed", "retain_perturbed"):
        for _, row in files.rows_of(root, configuration, ("name", "caption")):
            found.asked.add(stripped(row["name"]))
            if configuration != "retain_perturbed":
                found.perturbed.add((stripped(row["name"]), stripped(row["caption"])))
    found.faces = {stripped(row["answer"]) for _, row in files.rows_of(root, "real_faces", ("answer",))} - {
        ""
    }
    found.worldly = sum(1 for _ in files.rows_of(root, "real_world", ("question",)))
    return found


def stripped(text: str | None) -> str:
    """The text without blanks around it; empty for null."""
    return (text or "").strip()


def _meet(found: Survey, root: Path, configuration: str, split: str, bad_rows: BadRows) -> None:
    forgotten = set(found.people["forget"])
    met: dict[str, None] = {}
    for place, row in files.rows_of(root, configuration, ("name",)):
        person = stripped(row["name"])
        if not person:
            bad_rows.found(place.file, place.row, "the name is empty", "correct or remove the row")
        elif split == "retain" and person in forgotten:
            reason = f"{person} is to be forgotten and to be retained; every author belongs to one split"
            bad_rows.found(place.file, place.row, reason, _ONE_REVISION)
        else:
            met[person] = None
            found.pictures[person] += 1
    found.people[split] = list(met)


def _attribute(found: Survey, root: Path, configuration: str, split: str, bad_rows: BadRows) -> None:
    """Find whom the rows of text are about, block by block."""
    block: list[tuple[Place, dict[str, Any]]] = []
    for place, row in files.rows_of(root, configuration, files.WITH_TOFU[1:]):
        if stripped(row["question"]):
            block.append((place, row))
        elif not stripped(row["caption"]):
            reason = "it has neither a caption nor a question"
            bad_rows.found(place.file, place.row, reason, "correct or remove the row")
        if len(block) == QUESTIONS_PER_AUTHOR:
            _settle(found, block, split, bad_rows)
            block = []
    if block:
        _settle(found, block, split, bad_rows)


def _settle(found: Survey, block: list[tuple[Place, dict[str, Any]]], split: str, bad_rows: BadRows) -> None:
    """Give a block to the one author who is named in most of its rows."""
    everybody = [person for people in found.people.values() for person in people]
    author = _most_named(everybody, [f"{row['question']} {row['answer']}" for _, row in block])
    first, last = block[0][0], block[-1][0]
    where = f"rows {first.number} to {last.number} (text)"
    if author is None:
        reason = (
            "no author's name occurs in most of them, so it is not known whom they are about (expected "
            f"blocks of {QUESTIONS_PER_AUTHOR} questions, one author each)"
        )
        bad_rows.found(first.file, where, reason, "restore the published order of rows")
    elif author not in found.people[split]:
        reason = f"they are about {author}, who is not among the {split} people"
        bad_rows.found(first.file, where, reason, _ONE_REVISION)
    else:
        found.authors |= {(split, place.index): author for place, _ in block}


def _most_named(people: Iterable[str], texts: list[str]) -> str | None:
    """The person whose name occurs in more of the texts than anybody else's, or None."""
    counts = Counter({person: sum(person in text for text in texts) for person in people})
    ranked = counts.most_common(2)
    if not ranked or not ranked[0][1] or (len(ranked) > 1 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]
