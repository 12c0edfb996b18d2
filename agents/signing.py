"""Public keys as the daemon reads them (as initrds read them: fleet/signify.py)."""

from pathlib import Path

from agents import speaking
from agents.daemon import protocol
from fleet import signing


def public_keys(directory: Path, kind: str) -> str:
    """All public keys of a kind, as the boot plan carries them."""
    return speaking.format_keys(signing.public_keys(directory, kind))


def ids(keys: str) -> str:
    """The ids of keys in that form, sorted, a space between two: how a session keeps what its daemon was told."""
    return " ".join(sorted(protocol.parse_keys(keys)))
