"""Ed25519 keys (RFC 8032): the command key signs envelopes, the session key boot plans and answers to daemons, the image key versions.

A key file holds one line ``<key id>:<base64 of 32 bytes>``; the private one is read by one process alone, the public one
(``.pub``) by all. The key id is derived from the public key, so that two keys never share one. While keys rotate
(``fleet.slots``), and for keys of other servers that are trusted, further public ones lie beside it: ``image-school.pub``.
"""

import base64
import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
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
        """The private key that lies at ``path`` now: a process that asks before each signature needs no restart when keys rotate.

        SiteError says which setting is missing or which file is wrong.
        """
        setting = f"FLEET_{kind.upper()}_KEY"
        if not path:
            raise SiteError(
                f"This process has no {kind} key, so it cannot sign.",
                hint=f"Set {setting} for it, and for no other process; `manage.py keys` makes one.",
            )
        try:
            found = os.stat(path)  # noqa: PTH116 - once for each signature
            return _read(path, found.st_ino, found.st_mtime_ns)
        except (OSError, ValueError) as error:
            raise SiteError(
                f"The {kind} key {path} cannot be read: {error}.", hint="`manage.py keys` makes one."
            ) from None

    @property
    def public(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    def sign(self, body: bytes) -> bytes:
        return self._key.sign(body)


@lru_cache(len(KINDS))
def _read(path: str, *_identity: int) -> Signer:
    key_id, _, secret = Path(path).read_text().strip().partition(":")
    return Signer(key_id, Ed25519PrivateKey.from_private_bytes(base64.b64decode(secret, validate=True)))


def make_keys(directory: Path) -> list[Path]:
    """Make the key pairs that are missing in ``directory``; the paths of the new private keys.

    Where a public half lies alone, the private one was moved to where only its process reads it.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o755)
    made = []
    for kind in KINDS:
        private, public = directory / f"{kind}.key", directory / f"{kind}.pub"
        if not private.exists() and not public.exists():
            make_pair(kind, private, public)
            made.append(private)
        elif not public.exists():  # whoever made the pair was interrupted
            publish(Signer.load(str(private), kind), public)
    return made


def make_pair(kind: str, private: Path, public: Path, owner: os.stat_result | None = None) -> None:
    """A new key pair at two places; ``owner`` has the private half, which comes first: no key is told of that cannot sign."""
    key = Ed25519PrivateKey.generate()
    key_id = f"{kind}-{hashlib.sha256(key.public_key().public_bytes_raw()).hexdigest()[:8]}"
    put(private, f"{key_id}:{base64.b64encode(key.private_bytes_raw()).decode()}\n", 0o600, owner)
    publish(Signer(key_id, key), public)


def publish(signer: Signer, path: Path) -> None:
    """Write its public half to ``path``."""
    put(path, f"{signer.key_id}:{base64.b64encode(signer.public).decode()}\n", 0o644)


def put(path: Path, text: str, mode: int, owner: os.stat_result | None = None) -> None:
    """Write a file so that whoever reads it meanwhile gets all of the old one, or all of this."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        os.fchmod(file.fileno(), mode)  # whatever the umask says
        if owner is not None and (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def public_keys(directory: Path, kind: str) -> dict[str, bytes]:
    """All public keys of a kind by their ids: ``command.pub`` and ``command-*.pub``."""
    paths = sorted(directory.glob(f"{kind}*.pub"))
    try:
        keys = dict(map(public_key, paths))
    except FileNotFoundError:  # it went after it was listed: keys rotate at this moment
        keys = dict(map(public_key, (path for path in sorted(directory.glob(f"{kind}*.pub")) if path.exists())))
    if not keys:
        raise SiteError(f"There is no public {kind} key in {directory}.", hint="Run `manage.py keys`.")
    return keys


def public_key(path: Path) -> tuple[str, bytes]:
    """Id and bytes of the public key in a file. SiteError for what is none, FileNotFoundError for no file."""
    try:
        key_id, _, encoded = path.read_text().strip().partition(":")
        public = base64.b64decode(encoded, validate=True)
        if not key_id or len(public) != 32:
            raise ValueError("it is no line <key id>:<base64 of 32 bytes>")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise SiteError(
            f"The public key {path} cannot be read: {error}.", hint="Put back the file that `manage.py keys` made."
        ) from None
    return key_id, public


def verify(public: bytes, body: bytes, signature: bytes) -> bool:
    """Whether ``signature`` of ``body`` was made with the secret of ``public``."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, body)
    except InvalidSignature:
        return False
    return True
