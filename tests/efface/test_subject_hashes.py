"""Hashes that say nobody's name: keyed ones cannot be guessed, and one person has one everywhere."""

import hashlib

import pytest

from efface.subject_hashes import subject_hash, subject_hashes

KEY = bytes(range(16))


def test_a_hash_needs_the_key():
    # HMAC-SHA256 of the 16 bytes 00 to 0f and the id
    expected = "d03279399935559a0d535f0677bdce60867ec2e41598641ef63a0da662bb686a"
    assert subject_hash("fictitious/001", KEY) == expected
    assert expected not in {subject_hash("fictitious/002", KEY), subject_hash("fictitious/001", KEY[::-1])}
    with pytest.raises(ValueError, match="a key of 3 bytes"):
        subject_hash("a", b"abc")


def test_each_person_has_one_and_the_order_tells_nothing():
    people = ["b", "a", "b"]
    assert subject_hashes(people, KEY) == sorted({subject_hash("a", KEY), subject_hash("b", KEY)})
    assert subject_hashes(people, KEY) == subject_hashes(people[::-1], KEY)
    assert subject_hashes([], KEY) == subject_hashes([], None) == []


def test_without_a_key_it_is_the_plain_hash_that_anybody_can_make():
    assert subject_hashes(["a"], None) == [hashlib.sha256(b"a").hexdigest()[:16]]
    assert not set(subject_hashes(["a", "b"], None)) & {each[:16] for each in subject_hashes(["a", "b"], KEY)}
