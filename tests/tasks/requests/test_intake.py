"""Requests as files: what they say, whom they mean, and words for everything that is wrong with them."""

import datetime as dt

import pytest

from tasks.requests.intake import (
    ForgetRequest,
    People,
    RequestError,
    Selector,
    made_request,
    next_id,
    read_request,
    read_requests,
    write_request,
)

GOOD = {
    "id": "A",
    "subjects": ["fictitious/001", "fictitious/002"],
    "reason": "they asked",
    "legal_basis": "GDPR Art. 17",
    "received": "2026-01-02",
    "due": "2026-02-01",
    "requester": "case 7",
}
PEOPLE = People(
    frozenset({"fictitious/001", "fictitious/002", "person/ann"}),
    {"fictitious/001": "Ada Marlow", "fictitious/002": "Bo Marlow", "person/ann": "Ann Berg"},
)


def test_a_request_written_is_the_request_read_and_is_never_rewritten(tmp_path):
    for changes in ({}, {"subjects": None, "selector": {"id": "fictitious/*", "name": "*Marlow"}}):
        request = made_request(GOOD | changes | {"id": f"R{len(changes)}"}, "here")
        path = write_request(tmp_path, request)
        assert read_request(path) == request
        with pytest.raises(RequestError, match="never rewritten"):
            write_request(tmp_path, request)


def test_requests_come_in_the_order_in_which_they_are_due(tmp_path):
    for name, due in (("A", "2026-03-01"), ("B", "2026-02-01"), ("C", "2026-02-01")):
        write_request(tmp_path, made_request(GOOD | {"id": name, "due": due}, "here"))
    found, broken = read_requests(tmp_path)
    assert list(found) == ["B", "C", "A"] and broken == {}


def test_a_file_that_cannot_be_read_takes_no_other_with_it(tmp_path):
    write_request(tmp_path, made_request(GOOD, "here"))
    (tmp_path / "requests" / "B.yaml").write_text("subjects: [a\nreason: {")
    (tmp_path / "requests" / "C.yaml").write_text("just words")
    found, broken = read_requests(tmp_path)
    assert list(found) == ["A"]
    assert "B.yaml is not readable as YAML" in broken["B"]
    assert "C.yaml: expected keys such as id and subjects, got str" in broken["C"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"due": "soon"}, "here: due is 'soon': input should be a valid date"),
        ({"due": "2025-12-31"}, "here: due is 2025-12-31, before received, 2026-01-02: expected a later day"),
        ({"subjects": None}, "here: it has neither of subjects and selector: expected one of them"),
        ({"selector": {"id": "*"}}, "here: it has both of subjects and selector"),
        ({"subjects": None, "selector": {}}, "here: selector: it is empty: expected id, name or both"),
        ({"subjects": []}, "here: subjects is []: list should have at least 1 item"),
        ({"subjects": ["a", "a"]}, "here: subjects names somebody twice: expected each once"),
        ({"subjects": [42]}, "here: subjects.0 is 42: input should be a valid string"),
        ({"reason": "  "}, "here: reason is '  '"),
        ({"colour": "red"}, "here: colour is an unknown key; allowed: id, subjects, selector, reason"),
        ({"id": "../A"}, "here: id is '../A'"),
    ],
)
def test_what_is_wrong_is_named(changes, words):
    with pytest.raises(RequestError) as raised:
        made_request(GOOD | changes, "here")
    assert words in str(raised.value)


def test_a_missing_key_is_named_and_an_id_is_the_name_of_its_file(tmp_path):
    with pytest.raises(RequestError, match="here: requester is missing"):
        made_request({key: value for key, value in GOOD.items() if key != "requester"}, "here")
    write_request(tmp_path, made_request(GOOD, "here")).rename(tmp_path / "requests" / "B.yaml")
    with pytest.raises(RequestError, match=r"B.yaml: id is 'A', expected the file's name, 'B'"):
        read_request(tmp_path / "requests" / "B.yaml")


def meant(**changes):
    return PEOPLE.meant_by(made_request(GOOD | changes, "here"))


def test_a_selector_means_those_whom_all_its_patterns_fit():
    assert meant() == ["fictitious/001", "fictitious/002"]
    assert meant(subjects=None, selector={"name": "A*"}) == ["fictitious/001", "person/ann"]
    assert meant(subjects=None, selector={"name": "A*", "id": "fictitious/*"}) == ["fictitious/001"]


def test_nobody_is_meant_by_an_unknown_name_or_an_empty_selection():
    with pytest.raises(RequestError, match="request A: nobody is called real/1; expected entity ids"):
        meant(subjects=["fictitious/001", "real/1"])
    with pytest.raises(RequestError, match="request A: the selector fits none of 3 people"):
        meant(subjects=None, selector={"name": "Z*"})


def test_an_id_that_is_free_is_found(tmp_path):
    assert next_id(tmp_path, "2026-01-02") == "2026-01-02-01"
    write_request(tmp_path, made_request(GOOD | {"id": "2026-01-02-01"}, "here"))
    assert next_id(tmp_path, "2026-01-02") == "2026-01-02-02"


def test_dates_are_dates_as_yaml_writes_them(tmp_path):
    request = read_request(write_request(tmp_path, made_request(GOOD, "here")))
    assert isinstance(request, ForgetRequest) and request.due == dt.date(2026, 2, 1)
    assert Selector(id="a").name is None
