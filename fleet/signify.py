"""Keys and signatures in the form of signify(1), which initrds have: without the comment lines its files begin with."""

import base64
import hashlib
from pathlib import Path

from fleet import signing
from fleet.signing import Signer


def signify_keys(directory: Path, kind: str) -> str:
    """All public keys of a kind, joined by commas."""
    return ",".join(map(signify_key, signing.public_keys(directory, kind).values()))


def signify_key(public: bytes) -> str:
    """One public key."""
    return base64.b64encode(b"Ed" + _number(public) + public).decode()


def signify(signer: Signer, body: bytes) -> str:
    """The signature of ``body``."""
    return base64.b64encode(b"Ed" + _number(signer.public) + signer.sign(body)).decode()


def _number(public: bytes) -> bytes:
    """What signify tells keys apart by: 8 bytes."""
    return hashlib.sha256(public).digest()[:8]
