"""Certificates: a digest of everything, and a chain."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.certificates.seal import chain_faults, digest_of, sealed

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def chain(*names):
    certificates = []
    for name in names:
        previous = certificates[-1] if certificates else None
        certificates.append(sealed({"request": {"id": name}, "value": 1}, previous))
    return certificates


def test_the_digest_is_of_sorted_json_without_spaces():
    # printf '{"a":[1,null],"b":"\xc3\xa9"}' | sha256sum
    expected = "e03c3c1ebb5fccd76e3bd35b9a86169f35e6f1b069645d48ac278175f54c4208"
    assert digest_of({"b": "é", "a": [1, None]}) == expected
    assert digest_of({"a": [1, None], "b": "é", "digest": "anything"}) == expected


@given(st.dictionaries(st.text(min_size=1, max_size=5), PLAIN, max_size=4), st.text(max_size=3))
def test_any_change_changes_the_digest(body, extra):
    body.pop("digest", None)
    changed = copy.deepcopy(body)
    changed["request"] = [extra, body.get("request")]
    assert digest_of(changed) != digest_of(body)
    assert digest_of(dict(reversed(body.items()))) == digest_of(body)


def test_a_chain_of_whole_certificates_has_no_fault_in_any_order():
    certificates = chain("A", "B", "C")
    assert chain_faults(certificates) == chain_faults(certificates[::-1]) == chain_faults([]) == []
    assert [certificate["number"] for certificate in certificates] == [1, 2, 3]


def test_a_change_is_detected_and_a_new_digest_does_not_hide_it():
    certificates = chain("A", "B", "C")
    certificates[1]["value"] = 2
    (fault,) = chain_faults(certificates)
    assert fault.startswith("certificate B: ")
    certificates[1]["digest"] = digest_of(certificates[1])
    (fault,) = chain_faults(certificates)
    assert fault.startswith("certificate C follows B (")


def test_a_missing_one_is_detected_unless_it_is_the_last():
    certificates = chain("A", "B", "C")
    assert len(chain_faults([certificates[0], certificates[2]])) == 2
    assert len(chain_faults(certificates[1:])) == 2
    assert chain_faults(certificates[:2]) == []


def test_numbers_that_json_cannot_hold_are_refused():
    with pytest.raises(ValueError):
        digest_of({"a": float("nan")})
