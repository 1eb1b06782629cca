"""The letter to the person: one page in plain language, from the certificate of their request."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from efface.certificates.render import environment

_WIDTH = 78


def letter(
    certificate: Mapping[str, Any],
    *,
    date: str,
    deleted: str | None,
    recipients: Sequence[str],
) -> dict[str, Any]:
    """What the letter says: `reference`, `request`, `received`, `date`, and `sections`, title to paragraphs.

    Args:
        certificate: of the request.
        date: of the letter, as 2026-01-31.
        deleted: day on which the person's data were deleted; None: they were not.
        recipients: who else received the data or the model, and was told.
    """
    request, scores = certificate["request"], certificate["scores"]["requests"]
    request_scores = scores[request["id"]]
    people = "you" if len(request["subjects"]) == 1 else "the people whom you named"
    facts = ", ".join(name.replace("_", " ") for name in request.get("attributes", ()))
    forgets = f"these facts about {people}, {facts}," if facts else people
    counts = {model: _of_hundred(request_scores[model]) for model in ("before", "after")}
    actions = [
        f"We changed our model, {certificate['models']['registered_name']}, to forget {forgets} when it is "
        f"shown a picture. The changed model is version {certificate['models']['after']['version']}; "
        f"we made and checked it on {certificate['made']['time'][:10]}."
    ]
    if deleted is not None:
        actions.append(
            f"On {deleted} we also deleted the pictures and texts about {people} that we had trained the "
            f"model with, and the older versions of the model that knew {people}."
        )
    meaning = [
        f"Before, the model answered {counts['before']} of 100 questions about {people} correctly when it "
        f"was shown a picture. Now it answers {counts['after']}.",
    ]
    if facts:
        meaning.append(f"These questions were about {facts}. What else the model knows about {people} stays.")
    limits = [
        "A changed model is not proof that nothing is left. We tried the questions and attacks that the "
        "certificate names; someone with other means may still learn something from it.",
    ]
    if certificate.get("evidence", {}).get(request["id"], {}).get("goal", "visual") == "visual":
        limits.append(
            "We changed what the model says when it is shown a picture. If someone types a name, the model "
            "may answer as before. Tell us if you want that changed too."
        )
    if deleted is None:
        limits.append(
            f"We still have the pictures and texts about {people}, so that we can test the model again. They "
            "are deleted separately."
        )
    limits.append("Copies of the data or the model that others made are out of our reach.")
    notices = (
        [f"These received the data or the model from us and are being told: {', '.join(recipients)}."]
        if recipients
        else ["We have no record of others who received the data or the model from us."]
    )
    rights = [
        f"The certificate has the number {certificate['number']}; ask us for it. If you are not satisfied, "
        "answer this letter, complain to your data protection authority, or go to court."
    ]
    return {
        "reference": request["requester"],
        "request": request["id"],
        "received": request["received"],
        "date": date,
        "sections": {
            "What we did": actions,
            "What this means": meaning,
            "What it does not mean": limits,
            "Who else was told": notices,
            "Your rights": rights,
        },
    }


def letter_html(content: Mapping[str, Any]) -> str:
    """The letter as one HTML page."""
    return environment().get_template("letter.html.j2").render(letter=content)


def letter_text(content: Mapping[str, Any]) -> str:
    """The letter as plain text."""
    lines = [
        "YOUR REQUEST TO BE FORGOTTEN",
        "",
        content["date"],
        f"Your reference: {content['reference']}",
        f"Ours: request {content['request']}, received on {content['received']}",
    ]
    for title, paragraphs in content["sections"].items():
        lines += [
            "",
            title.upper(),
            *(line for text in paragraphs for line in ("", textwrap.fill(text, _WIDTH))),
        ]
    return "\n".join(lines) + "\n"


def _of_hundred(scores: Mapping[str, float | None]) -> str:
    shares = [share for kind in ("seen", "unseen") if (share := scores[kind]) is not None]
    return str(round(100 * max(shares))) if shares else "an unknown number"
