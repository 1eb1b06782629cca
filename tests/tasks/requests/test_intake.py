"""Request files: their content, their subjects, and errors that name the key and the value."""

import datetime as dt
import os

import pytest

from tasks.requests.intake import (
    ForgetRequest,
    People,
    RequestError,
    Selector,
    parse_request,
    read_request,
    read_requests,
    unused_ids,
    write_request,
)

VALUES = {
    "id": "A",
    "subjects": ["fictitious/001", "fictitious/002"],
    "reason": "consent withdrawn",
    "legal_basis": "GDPR Art. 17",
    "received": "2026-01-02",
    "due": "2026-02-01",
    "requester": "case 7",
}
PEOPLE = People(
    frozenset({"fictitious/001", "fictitious/002", "person/ann"}),
    {"fictitious/001": "Ada Marlow", "fictitious/002": "Bo Marlow", "person/ann": "Ann Berg"},
)


def request_with(**changes):
    return parse_request(VALUES | changes, "source")


def test_a_request_is_read_as_it_was_written_and_never_rewritten(tmp_path):
    for changes in ({}, {"subjects": None, "selector": {"id": "fictitious/*", "name": "*Marlow"}}):
        request = request_with(**changes, id=f"R{len(changes)}")
        path = write_request(tmp_path, request)
        assert read_request(path) == request
        with pytest.raises(FileExistsError) as error:
            write_request(tmp_path, request)
        assert error.value.filename == str(path)


def test_an_id_whose_state_exists_is_in_use(tmp_path):
    state = tmp_path / "requests" / "state" / "A.json"
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    with pytest.raises(FileExistsError) as error:
        write_request(tmp_path, request_with())
    assert error.value.filename == str(state)


def test_requests_are_sorted_by_due_date(tmp_path):
    for name, due in (("A", "2026-03-01"), ("B", "2026-02-01"), ("C", "2026-02-01")):
        write_request(tmp_path, request_with(id=name, due=due))
    requests, problems = read_requests(tmp_path)
    assert list(requests) == ["B", "C", "A"] and problems == {}


def test_no_file_keeps_others_from_being_read(tmp_path):
    folder = write_request(tmp_path, request_with()).parent
    laughs = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"
    for name, text in {
        "syntax": "subjects: [a\nreason: {",
        "text": "just words",
        "deep": "[" * 100_000,
        "deep-keys": "".join(f"{' ' * level}k:\n" for level in range(3000)),
        "aliases": laughs,
        "control": "reason: \x1b[31mred",
        "number": f"reason: {'9' * 5000}",
        "date": "due: 2026-13-45",
        "keys": "1: a\n? [b]\n: c",
        "duplicate": "id: duplicate\nid: duplicate",
        "object": "!!python/object/apply:os.system [id]",
        "tag": "reason: !!binary aGVsbG8=",
        "documents": "id: a\n---\nid: b",
    }.items():
        (folder / f"{name}.yaml").write_text(text)
    (folder / "bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    (folder / "large.yaml").write_text("# " + "x" * (2 << 20))
    (folder / "folder.yaml").mkdir()
    os.symlink(tmp_path / "nothing", folder / "dangling.yaml")
    os.symlink(folder / "loop.yaml", folder / "loop.yaml")
    requests, problems = read_requests(tmp_path)
    assert list(requests) == ["A"]
    assert len(problems) == 18
    assert all(f"{name}.yaml" in problem for name, problem in problems.items())


@pytest.mark.parametrize("ending", [".yml", ".YAML", ".Yml"])
def test_a_request_in_a_file_of_another_ending_is_not_passed_over(tmp_path, ending):
    path = write_request(tmp_path, request_with())
    path.rename(path.with_suffix(ending))
    (path.parent / "notes.txt").write_text("no request")
    requests, problems = read_requests(tmp_path)
    assert requests == {} and list(problems) == ["A"]
    assert f"A{ending}" in problems["A"] and "A.yaml" in problems["A"]


def test_files_as_editors_of_other_systems_save_them_are_read(tmp_path):
    path = write_request(tmp_path, request_with(reason="“withdrew” consent"))
    text = path.read_text(encoding="utf-8")
    for content in ("\ufeff" + text, text.replace("\n", "\r\n"), text + "...\n"):
        path.write_bytes(content.encode())
        assert read_request(path) == request_with(reason="“withdrew” consent")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"due": "soon"}, ["due", "'soon'"]),
        ({"due": "2025-12-31"}, ["due", "2025-12-31", "received", "2026-01-02"]),
        ({"subjects": None}, ["neither", "subjects", "selector"]),
        ({"selector": {"id": "*"}}, ["both", "subjects", "selector"]),
        ({"subjects": None, "selector": {}}, ["selector", "id, name"]),
        ({"subjects": []}, ["subjects", "[]"]),
        ({"subjects": ["a", "a"]}, ["subjects", "twice"]),
        ({"subjects": [42]}, ["subjects.0", "42"]),
        ({"reason": "  "}, ["reason", "'  '"]),
        ({"reason": "a\x1b[31mb"}, ["reason", "x1b"]),
        ({"reason": "a\u202eb"}, ["reason", "u202e"]),
        ({"requester": "case 7\u2028case 8"}, ["requester", "u2028"]),
        ({"subjects": ["../../etc/passwd\0"]}, ["subjects.0", "x00"]),
        ({"colour": "red"}, ["colour", "id, subjects, selector"]),
        ({"id": "../A"}, ["id", "'../A'"]),
    ],
)
def test_an_error_names_source_key_and_value(changes, words):
    with pytest.raises(RequestError) as error:
        request_with(**changes)
    assert all(word in str(error.value) for word in ["source: ", *words])


def test_a_missing_key_is_named_and_an_id_is_the_name_of_its_file(tmp_path):
    with pytest.raises(RequestError) as error:
        parse_request({key: value for key, value in VALUES.items() if key != "requester"}, "source")
    assert "requester" in str(error.value)
    write_request(tmp_path, request_with()).rename(tmp_path / "requests" / "B.yaml")
    with pytest.raises(RequestError) as error:
        read_request(tmp_path / "requests" / "B.yaml")
    assert "B.yaml" in str(error.value) and "'A'" in str(error.value)


def subjects_of(**changes):
    return PEOPLE.subjects_of(request_with(**changes))


def test_a_selector_matches_those_whom_all_its_patterns_match():
    assert subjects_of() == ["fictitious/001", "fictitious/002"]
    assert subjects_of(subjects=None, selector={"name": "A*"}) == ["fictitious/001", "person/ann"]
    assert subjects_of(subjects=None, selector={"name": "A*", "id": "fictitious/*"}) == ["fictitious/001"]


@pytest.mark.parametrize("typed", ["person/Ann", "ANN BERG", "Ann\u00a0Berg", "\uff21nn  Berg", "ann"])
def test_subjects_match_however_they_are_typed(typed):
    assert subjects_of(subjects=[typed]) == ["person/ann"]
    assert subjects_of(subjects=["person/ann", typed]) == ["person/ann"]
    assert subjects_of(subjects=None, selector={"name": "ann\u2003B*"}) == ["person/ann"]


def test_unknown_subjects_and_a_selector_without_matches_are_refused():
    with pytest.raises(RequestError) as error:
        subjects_of(subjects=["fictitious/001", "real/1"])
    assert "request A" in str(error.value) and "real/1" in str(error.value)
    with pytest.raises(RequestError) as error:
        subjects_of(subjects=None, selector={"name": "Z*"})
    assert "request A" in str(error.value) and "selector" in str(error.value)


def test_the_next_id_is_one_that_neither_a_request_nor_a_state_uses(tmp_path):
    assert next(unused_ids(tmp_path, "2026-01-02")) == "2026-01-02-01"
    write_request(tmp_path, request_with(id="2026-01-02-01"))
    (tmp_path / "requests" / "state").mkdir()
    (tmp_path / "requests" / "state" / "2026-01-02-02.json").write_text("{}")
    assert next(unused_ids(tmp_path, "2026-01-02")) == "2026-01-02-03"


def test_dates_are_dates_as_yaml_writes_them(tmp_path):
    request = read_request(write_request(tmp_path, request_with()))
    assert isinstance(request, ForgetRequest) and request.due == dt.date(2026, 2, 1)
    assert Selector(id="a").name is None
