"""Ed25519 keys (RFC 8032): the command key signs envelopes, the session key boot plans and answers to daemons, the image key versions.

A key file holds one line ``<key id>:<base64 of 32 bytes>``; the private one is read by one process alone, the public one
(``.pub``) by all. The key id is derived from the public key, so that two keys never share one. While keys rotate, and for keys of
other servers that are trusted, further public ones lie beside it: ``image-school.pub``.
"""

import base64
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fleet.exceptions import SiteError

KINDS = ("command", "session", "image")


@dataclass(frozen=True)
class Signer:
    key_id: str
    _key: Ed25519PrivateKey

    @classmethod
    def load(cls, path: str, kind: str) -> "Signer":
        """The private key at ``path``. SiteError says which setting is missing or which file is wrong."""
        setting = f"FLEET_{kind.upper()}_KEY"
        if not path:
            raise SiteError(
                f"This process has no {kind} key, so it cannot sign.",
                hint=f"Set {setting} for it, and for no other process; `manage.py keys` makes one.",
            )
        try:
            key_id, _, secret = Path(path).read_text().strip().partition(":")
            return cls(key_id, Ed25519PrivateKey.from_private_bytes(base64.b64decode(secret, validate=True)))
        except (OSError, ValueError) as error:
            raise SiteError(
                f"The {kind} key {path} cannot be read: {error}.", hint="`manage.py keys` makes one."
            ) from None

    @property
    def public(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    def sign(self, body: bytes) -> bytes:
        return self._key.sign(body)


def make_keys(directory: Path) -> list[Path]:
    """Make the key pairs that are missing in ``directory``; the paths of the new private keys."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o755)
    made = []
    for kind in KINDS:
        private = directory / f"{kind}.key"
        if private.exists():
            continue
        key = Ed25519PrivateKey.generate()
        public = key.public_key().public_bytes_raw()
        key_id = f"{kind}-{hashlib.sha256(public).hexdigest()[:8]}"
        (directory / f"{kind}.pub").write_text(f"{key_id}:{base64.b64encode(public).decode()}\n")
        descriptor = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{key_id}:{base64.b64encode(key.private_bytes_raw()).decode()}\n")
        made.append(private)
    return made


def public_keys(directory: Path, kind: str) -> dict[str, bytes]:
    """All public keys of a kind by their ids: ``command.pub`` and ``command-*.pub``."""
    keys: dict[str, bytes] = {}
    for path in sorted(directory.glob(f"{kind}*.pub")):
        try:
            key_id, _, encoded = path.read_text().strip().partition(":")
            public = base64.b64decode(encoded, validate=True)
            if not key_id or len(public) != 32:
                raise ValueError("it is no line <key id>:<base64 of 32 bytes>")
            keys[key_id] = public
        except (OSError, ValueError) as error:
            raise SiteError(
                f"The public key {path} cannot be read: {error}.", hint="Put back the file that `manage.py keys` made."
            ) from None
    if not keys:
        raise SiteError(f"There is no public {kind} key in {directory}.", hint="Run `manage.py keys`.")
    return keys


def verify(public: bytes, body: bytes, signature: bytes) -> bool:
    """Whether ``signature`` of ``body`` was made with the secret of ``public``."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, body)
    except InvalidSignature:
        return False
    return True
