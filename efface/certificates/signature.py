"""Ed25519 signatures of certificates: proof that the holder of the private key issued them unchanged."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from efface.certificates.seal import DIGEST, SIGNATURE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def create_key() -> bytes:
    """A new private key, in PEM."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def signed(certificate: Mapping[str, Any], private_key: bytes) -> dict[str, Any]:
    """The certificate with a signature of its digest, and the public key, both in hex.

    Args:
        certificate: with its digest.
        private_key: Ed25519, in PEM.

    Raises:
        ValueError: if it is not an Ed25519 key.
    """
    signature = {
        "public_key": public_key_of(private_key),
        "value": _load(private_key).sign(bytes.fromhex(certificate[DIGEST])).hex(),
    }
    return {**certificate, SIGNATURE: signature}


def public_key_of(private_key: bytes) -> str:
    """The public key in hex.

    Raises:
        ValueError: if the private key is not Ed25519 in PEM, without a password.
    """
    return _load(private_key).public_key().public_bytes_raw().hex()


def _load(private_key: bytes) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(private_key, password=None)
    except (TypeError, UnsupportedAlgorithm) as error:  # TypeError: it is encrypted
        raise ValueError(str(error)) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"private key is a {type(key).__name__}, expected Ed25519")
    return key


def signature_fault(certificate: Mapping[str, Any], public_keys: Collection[str]) -> str | None:
    """What is wrong with a certificate's signature; None if nothing is.

    Args:
        certificate: with its signature.
        public_keys: the trusted keys, in hex.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    name, signature = certificate["request"]["id"], certificate[SIGNATURE]
    if signature["public_key"] not in public_keys:
        return f"certificate {name} is signed with key {signature['public_key']}, which is not trusted"
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature["public_key"]))
        key.verify(bytes.fromhex(signature["value"]), bytes.fromhex(certificate[DIGEST]))
    except (InvalidSignature, ValueError):
        return f"certificate {name}: its signature does not match its digest; it was changed"
    return None
