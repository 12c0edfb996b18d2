"""Ed25519 keys (RFC 8032): the command key signs envelopes, the session key answers to daemons.

A key file holds one line ``<key id>:<base64 of 32 bytes>``; the private one is read by one process alone, the public one beside
it (``.pub``) goes into boot plans. The key id is derived from the public key, so that two keys never share one.
"""

import base64
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agents.daemon import protocol
from fleet.exceptions import SiteError

KINDS = ("command", "session")


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

    def sign(self, body: bytes) -> bytes:
        return self._key.sign(body)

    def signify(self, body: bytes) -> str:
        """The signature as signify(1) reads it, without its comment line."""
        public = self._key.public_key().public_bytes_raw()
        return base64.b64encode(b"Ed" + _key_number(public) + self._key.sign(body)).decode()


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


def _key_number(public: bytes) -> bytes:
    """What signify(1) tells keys apart by: 8 bytes."""
    return hashlib.sha256(public).digest()[:8]


def signify_keys(directory: Path, kind: str) -> str:
    """The keys of `public_keys` as signify(1) reads them, without their comment lines, joined by commas."""
    return ",".join(map(signify_key, protocol.parse_keys(public_keys(directory, kind)).values()))


def signify_key(public: bytes) -> str:
    """The key as signify(1) reads it, without its comment line."""
    return base64.b64encode(b"Ed" + _key_number(public) + public).decode()


def public_keys(directory: Path, kind: str) -> str:
    """All public keys of a kind, as the boot plan carries them: ``command.pub``, and ``command-*.pub`` while keys rotate."""
    keys: dict[str, bytes] = {}
    for path in sorted(directory.glob(f"{kind}*.pub")):
        try:
            keys |= protocol.parse_keys(path.read_text().strip())
        except (OSError, ValueError) as error:
            raise SiteError(
                f"The public key {path} cannot be read: {error}.", hint="Put back the file that `manage.py keys` made."
            ) from None
    if not keys:
        raise SiteError(f"There is no public {kind} key in {directory}.", hint="Run `manage.py keys`.")
    return protocol.format_keys(keys)
