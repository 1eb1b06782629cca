"""Hashes that say nobody's name: keyed ones cannot be guessed, and one person has one everywhere."""

import hashlib

import pytest

from efface.pseudonyms import pseudonym, pseudonyms

KEY = bytes(range(16))


def test_a_pseudonym_needs_the_key():
    # HMAC-SHA256 of the 16 bytes 00 to 0f and the id
    expected = "d03279399935559a0d535f0677bdce60867ec2e41598641ef63a0da662bb686a"
    assert pseudonym("fictitious/001", KEY) == expected
    assert expected not in {pseudonym("fictitious/002", KEY), pseudonym("fictitious/001", KEY[::-1])}
    with pytest.raises(ValueError, match="a key of 3 bytes"):
        pseudonym("a", b"abc")


def test_each_person_has_one_and_the_order_tells_nothing():
    people = ["b", "a", "b"]
    assert pseudonyms(people, KEY) == sorted({pseudonym("a", KEY), pseudonym("b", KEY)})
    assert pseudonyms(people, KEY) == pseudonyms(people[::-1], KEY)
    assert pseudonyms([], KEY) == pseudonyms([], None) == []


def test_without_a_key_it_is_the_plain_hash_that_anybody_can_make():
    assert pseudonyms(["a"], None) == [hashlib.sha256(b"a").hexdigest()[:16]]
    assert not set(pseudonyms(["a", "b"], None)) & {each[:16] for each in pseudonyms(["a", "b"], KEY)}
