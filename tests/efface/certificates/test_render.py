"""The page of a certificate holds the values of its JSON, escaped, and is always the same bytes."""

import copy
import hashlib

import pytest

from efface.certificates.render import render_certificate
from efface.certificates.seal import sealed

VANILLA = {"seen": 1.0, "unseen": 0.5, "by_name": None}
UNLEARNED = {"seen": 0.25, "unseen": 0.125, "by_name": 1.0}
BODY = {
    "format": 1,
    "request": {
        "id": "A",
        "reason": "<b>consent</b> withdrawn",
        "legal_basis": "GDPR Art. 17",
        "received": "2026-01-02",
        "due": "2026-02-01",
        "days_late": 0,
        "requester": "case 7",
        "subjects": ["ab" * 32, "cd" * 32],
    },
    "files": {"mask": {"path": "masks/saliency.safetensors", "digest": "ef" * 32}},
    "data": {"benchmark": "avatars", "people_to_keep": 50, "people_forgotten": 4},
    "models": {
        "registered_name": "efface-avatars-sandbox",
        "base": "sandbox@newest",
        "original": {"version": 1, "digest": "1"},
        "before": {"version": 2, "digest": "2"},
        "after": {"version": 3, "digest": "3"},
    },
    "method": {
        "name": "mmunlearner",
        "parameters": {"epochs": 3, "lora": None, "settings": {"beta": 0.1}, "start": "vanilla"},
        "seed": 0,
        "mask": {"density": {"total": 0.21}},
    },
    "scores": {
        "requests": {
            "A": {"original": VANILLA, "before": VANILLA, "after": UNLEARNED},
            "B": {"original": VANILLA, "before": UNLEARNED, "after": UNLEARNED},
        },
        "retain": {"original": 1.0, "before": 0.98, "after": 0.96},
        "utility": {"original": 0.9, "before": 0.9, "after": None},
    },
    "attacks": {},
    "gates": [
        {
            "name": "forget",
            "about": "A",
            "value": 0.25,
            "limit": 0.35,
            "holds": "at most",
            "passed": True,
        }
    ],
    "signature": {"public_key": "12" * 32, "value": "34" * 64},
    "made": {"time": "2026-01-20T10:00:00Z", "git_commit": "0" * 40, "device": "cpu", "versions": {}},
}


def page(**changes):
    body = copy.deepcopy(BODY)
    body["request"] |= changes.pop("request", {})
    return render_certificate(sealed(body | changes, None))


def test_a_page_of_format_1_keeps_its_bytes():
    """Verification renders old certificates again and compares."""
    digest = hashlib.sha256(page().encode()).hexdigest()
    assert digest == "bbfed6eeace053b774e7cf0264f160124d201eb07bdb943d5bdf2198b0d7f9d7"


def test_format_2_has_the_annex_and_the_limits():
    row = {"class": "model inversion", "status": "not run", "about": "<none>", "result": {}, "interval": None}
    ran = row | {"class": "membership inference", "status": "executed", "result": {"AUC": 0.5}}
    annex = [row, ran | {"interval": [0.25, 0.75]}]
    text = page(
        format=2, annex=annex, limits=["It is about & these"], release=None, not_retested={"Z": "2026"}
    )
    for words in (
        "model inversion",
        "not run",
        "&lt;none&gt;",
        "AUC 0.50",
        "0.25",
        "&amp; these",
        "request Z",
        "pseudonyms",
    ):
        assert words in text


def test_the_page_shows_the_request_and_its_result():
    text = " ".join(page().split())
    for words in (
        "<h1>Certificate of unlearning</h1>",
        "Request <strong>A</strong> to forget 2 people",
        "version 2 was made to forget them with the method mmunlearner, and the result is version 3.",
        '<td class="new">0.25</td>',
        "request B",
        "at most 0.35</td><td>yes</td>",
        'Forgotten: exact match by picture<span class="about">, request A</span>',
        "50 people to keep",
        "None was run:",
        "none, this is the first",
        "abababab abababab",
        "mask with 21.0 % of the weights",
        "requests.retrained is off",
        "epochs 3, lora null, settings {&#34;beta&#34;: 0.1}, start vanilla",
    ):
        assert words in text, words
    assert "–" in text, "a dash stands for no value"
    assert "after the due date" not in text


def test_words_of_the_request_are_words_and_not_html():
    assert "&lt;b&gt;consent&lt;/b&gt; withdrawn" in page() and "<b>consent</b>" not in page()


def test_lateness_attacks_and_the_retrained_model_are_on_the_page():
    assert "This was 1 day after the due date." in page(request={"days_late": 1})
    attacks = {"relearn": {"exact_match": {"100 steps": {"after": 0.5, "retrained": 0.375}}, "gap": 0.125}}
    assert "relearn: 100 steps</th><td>0.50</td><td>0.38</td>" in page(attacks=attacks)
    scores = copy.deepcopy(BODY["scores"])
    for values in (*scores["requests"].values(), scores["retain"], scores["utility"]):
        if isinstance(values, dict) and "before" in values:
            values["retrained"] = values["before"]
    text = page(scores=scores)
    assert "retrained without them" in text and "requests.retrained is off" not in text


def test_the_same_certificate_gives_the_same_page_which_loads_nothing():
    assert page() == page()
    assert "<script" not in page() and "http" not in page() and "src=" not in page()


def test_a_certificate_that_lacks_something_has_no_page():
    with pytest.raises(KeyError):
        render_certificate({"scores": {"requests": {}}, "request": {"id": "A"}})
