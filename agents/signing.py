"""Public keys and signatures as clients read them: the daemon's form, and that of signify(1), which initrds have."""

import base64
import hashlib
from pathlib import Path

from agents.daemon import protocol
from fleet import signing
from fleet.signing import Signer


def public_keys(directory: Path, kind: str) -> str:
    """All public keys of a kind, as the boot plan carries them."""
    return protocol.format_keys(signing.public_keys(directory, kind))


def signify_keys(directory: Path, kind: str) -> str:
    """The same as signify reads them, without their comment lines, joined by commas."""
    return ",".join(map(signify_key, signing.public_keys(directory, kind).values()))


def signify_key(public: bytes) -> str:
    """One key as signify reads it, without its comment line."""
    return base64.b64encode(b"Ed" + _number(public) + public).decode()


def signify(signer: Signer, body: bytes) -> str:
    """The signature of ``body`` as signify reads it, without its comment line."""
    return base64.b64encode(b"Ed" + _number(signer.public) + signer.sign(body)).decode()


def _number(public: bytes) -> bytes:
    """What signify tells keys apart by: 8 bytes."""
    return hashlib.sha256(public).digest()[:8]
