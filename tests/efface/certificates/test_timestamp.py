"""Time stamps by openssl's own authority: right ones are accepted, and every change is refused."""

import datetime as dt
import hashlib
import shutil

import pytest

from efface.certificates.timestamp import stamp_request, stamp_time
from tests.efface.certificates.authority import Authority

pytest.importorskip("rfc3161_client")
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

CONTENT = b"a certificate"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority") / "own")


def test_a_stamp_of_the_digest_has_the_time_at_which_it_was_given(authority):
    before = dt.datetime.now(dt.UTC).replace(microsecond=0)
    request = stamp_request(CONTENT)
    response = authority.answer(request.as_bytes())
    time = stamp_time(response, DIGEST, authority.root, nonce=request.nonce)
    assert before <= time <= dt.datetime.now(dt.UTC) and time.tzinfo == dt.UTC
    assert stamp_time(response, DIGEST, authority.root) == time
    assert authority.accepts(response, DIGEST), "readers without this project can check it"


def test_another_digest_request_or_root_is_refused(authority, tmp_path):
    request = stamp_request(CONTENT)
    response = authority.answer(request.as_bytes())
    other = Authority(tmp_path / "other")
    for digest, roots, nonce in (
        ("00" * 32, authority.root, None),
        (DIGEST, other.root, None),
        (DIGEST, authority.root, request.nonce + 1),
        (DIGEST, b"", None),
        (DIGEST, b"no certificate", None),
    ):
        with pytest.raises(ValueError):
            stamp_time(response, digest, roots, nonce=nonce)
    stamp_time(response, DIGEST, other.root + authority.root)


def test_a_refusal_says_what_the_server_said(tmp_path):
    authority = Authority(tmp_path / "authority", digests="sha512")
    response = authority.answer(stamp_request(CONTENT).as_bytes())
    with pytest.raises(ValueError, match="GRANTED.*not supported"):
        stamp_time(response, DIGEST, authority.root)


def test_a_changed_digest_time_or_signature_is_refused(authority):
    response = authority.answer(stamp_request(CONTENT).as_bytes())
    assert response.count(bytes.fromhex(DIGEST)) == 1
    year = response.index(f"{dt.datetime.now(dt.UTC).year}".encode())
    for place in (response.index(bytes.fromhex(DIGEST)), year + 3, len(response) - 1):
        changed = bytearray(response)
        changed[place] ^= 1
        with pytest.raises(ValueError):
            stamp_time(bytes(changed), DIGEST, authority.root)
    for damaged in (b"", response[:-1], b"<html>"):
        with pytest.raises(ValueError):
            stamp_time(damaged, DIGEST, authority.root)
