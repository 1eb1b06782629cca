"""Signatures: the test vector of RFC 8032, and every change of certificate, signature or key is detected."""

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from efface.certificates.seal import digest_of, sealed
from efface.certificates.signature import create_key, signature_fault, signed


def pem(key):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_the_signature_is_that_of_rfc_8032():
    # RFC 8032, 7.1, test 3: message af82
    seed = "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7"
    key = pem(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed)))
    signature = signed({"digest": "af82"}, key)["signature"]
    assert signature["public_key"] == "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025"
    assert signature["value"] == (
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
    )


def test_every_change_is_a_fault():
    key = create_key()
    certificate = signed(sealed({"request": {"id": "A"}, "value": 1}, None), key)
    keys = [certificate["signature"]["public_key"]]
    assert signature_fault(certificate, keys) is None
    assert digest_of(certificate) == certificate["digest"]
    for changes in (
        {"digest": "00" * 32},
        {"signature": certificate["signature"] | {"value": "00" * 64}},
        {"signature": certificate["signature"] | {"value": "no hex"}},
    ):
        assert "certificate A" in signature_fault(certificate | changes, keys)
    forged = signed(certificate, create_key())
    assert forged["signature"]["public_key"] in signature_fault(forged, keys)


def test_another_kind_of_key_is_refused():
    certificate = sealed({"request": {"id": "A"}}, None)
    with pytest.raises(ValueError) as error:
        signed(certificate, pem(rsa.generate_private_key(65537, 1024)))
    assert "RSA" in str(error.value)
    with pytest.raises(ValueError):
        signed(certificate, b"no key")
