"""Hashes of people: keyed ones cannot be guessed, and a person has the same one everywhere."""

import hashlib

import pytest

from efface.subject_hashes import subject_hash, subject_hashes

KEY = bytes(range(16))


def test_a_keyed_hash_depends_on_the_key():
    # HMAC-SHA256 of the 16 bytes 00 to 0f and the id
    expected = "d03279399935559a0d535f0677bdce60867ec2e41598641ef63a0da662bb686a"
    assert subject_hash("fictitious/001", KEY) == expected
    assert expected not in {subject_hash("fictitious/002", KEY), subject_hash("fictitious/001", KEY[::-1])}
    with pytest.raises(ValueError) as error:
        subject_hash("a", b"abc")
    assert "3 bytes" in str(error.value)


def test_each_person_has_one_hash_and_their_order_is_hidden():
    subjects = ["b", "a", "b"]
    assert subject_hashes(subjects, KEY) == sorted({subject_hash("a", KEY), subject_hash("b", KEY)})
    assert subject_hashes(subjects, KEY) == subject_hashes(subjects[::-1], KEY)
    assert subject_hashes([], KEY) == subject_hashes([], None) == []


def test_without_a_key_it_is_the_plain_hash():
    assert subject_hashes(["a"], None) == [hashlib.sha256(b"a").hexdigest()[:16]]
    keyed = {digest[:16] for digest in subject_hashes(["a", "b"], KEY)}
    assert not set(subject_hashes(["a", "b"], None)) & keyed
