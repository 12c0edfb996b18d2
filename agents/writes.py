"""What running clients write, as findings on the version they booted: where no rule names it, one is proposed."""

import posixpath
from typing import Any

from django.db import transaction

from agents.daemon import protocol
from agents.hands.writes import EXAMPLES, LONGEST, MOST
from agents.models import BootSession
from images import findings
from images.builder.recipe import Recipe
from images.builder.volatile import Verb, rule_naming, verb_of
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
        if not isinstance(entry, dict) or entry.keys() != {"path", "files", "bytes", "examples"}:
            raise BadWrites("An entry has path, files, bytes and examples, and nothing else.")
        path, examples = entry["path"], entry["examples"]
        if not _is_path(path):
            raise BadWrites("An entry has no path.")
        if not isinstance(examples, list) or not 0 < len(examples) <= EXAMPLES or not all(map(_is_path, examples)):
            raise BadWrites(f"An entry has no examples, or more than {EXAMPLES}.")
        if any(one != path and not one.startswith(f"{path.rstrip('/')}/") for one in examples):
            raise BadWrites("An example is not in the path of its entry.")
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
    found = []
    for entry in entries:
        if free := [one for one in entry["examples"] if verb_of(rules, one) is Verb.SHARE]:
            path, files = entry["path"], entry["files"]
            detail = f"{files} file{'' if files == 1 else 's'} in all, as {', '.join(free)}"
            # Shared by a rule of its own it is on purpose, and another rule would contradict that one.
            rule = "" if any(one.path == path for one in rules) else rule_for(path)
            found.append(Found(FindingKind.WRITTEN, path, rule, detail, entry["bytes"]))
    return findings.note(version, FindingSource.OBSERVED, found, session.client)


def rule_for(path: str) -> str:
    """The rule that would make ``path`` volatile; "" for what is too much to copy as a whole."""
    return "" if path.count("/") < 2 and path not in _TELLING else rule_naming(Verb.COPY, path)


def _is_path(value: object) -> bool:
    whole = isinstance(value, str) and len(value) <= LONGEST and value.isprintable()
    return whole and value == posixpath.normpath(f"/{str(value).lstrip('/')}")
