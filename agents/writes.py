"""What running clients write, as findings on the version they booted: where no rule names it, one is proposed."""

from typing import Any

from django.db import transaction

from agents.daemon import protocol
from agents.daemon.writes import LONGEST, MOST
from agents.models import BootSession
from images import findings
from images.builder.recipe import Recipe
from images.builder.volatile import MOUNT_POINTS, Verb, verb_of
from images.finding_models import FindingKind, FindingSource
from images.findings import Found

_TELLING = frozenset({"/srv", "/opt"})  # the directories at the top that a rule may name as a whole


class BadWrites(ValueError):
    """What a daemon told does not have the form of docs/protocol.md."""


def clean(said: object) -> list[dict[str, Any]]:
    """The entries in their right form. BadWrites names what is wrong."""
    if not isinstance(said, list) or len(said) > MOST:
        raise BadWrites(f"writes is a list of at most {MOST} entries.")
    for entry in said:
        if not isinstance(entry, dict) or not all(_is_path(entry.get(key)) for key in ("path", "example")):
            raise BadWrites("An entry has no path, or no example.")
        if not all(protocol.count(entry.get(key)) for key in ("files", "bytes")):
            raise BadWrites("An entry has no count of files, or of bytes.")
    return said


@transaction.atomic
def take(session: BootSession, entries: list[dict[str, Any]]) -> int:
    """Note what no rule of the session's version covers; how much of it nobody had told before."""
    if session.release is None:
        return 0
    version = session.release.version
    rules = Recipe.from_dict(version.recipe).volatile
    found = [
        Found(
            FindingKind.WRITTEN,
            entry["path"],
            rule_for(entry["path"]),
            f"{entry['files']} file{'' if entry['files'] == 1 else 's'}, as {entry['example']}",
            entry["bytes"],
        )
        for entry in entries
        if verb_of(rules, entry["example"]) is Verb.SHARE
    ]
    return findings.note(version, FindingSource.OBSERVED, found, session.client)


def rule_for(path: str) -> str:
    """The rule that would make ``path`` volatile; "" for what is too much to copy as a whole."""
    top = path.count("/") < 2 and path not in _TELLING
    mounted = any(path == point or path.startswith(f"{point}/") for point in MOUNT_POINTS)
    return "" if top or mounted else f"{Verb.COPY} {path}"


def _is_path(value: object) -> bool:
    return isinstance(value, str) and value.startswith("/") and len(value) <= LONGEST and value.isprintable()
