"""Volatile rules: which paths of an image may change on a running client, and so live in its tmpfs.

One rule per line, `verb path`; a path may hold the globs `*`, `?` and `[…]`, which do not match a `/`:

    copy  /etc              a real copy, writable; of a directory with all that is in it
    empty /tmp              there and writable, but without the image's content
    share /etc/ssl/certs    an exception: stays a link into the read-only share

The rule of the longest path wins, of two for one path the later. What no rule names is shared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from images.builder.errors import RecipeError
from images.builder.paths import refuse_path

SHARE = "/.ro"
MOST_RULES = 500
MOUNT_POINTS = ("/proc", "/sys", "/dev", "/run", SHARE)


class Verb(StrEnum):
    """What happens to a path of the image in the root of a client."""

    COPY = "copy"
    EMPTY = "empty"
    SHARE = "share"


@dataclass(frozen=True, slots=True)
class Rule:
    """One volatile rule; `str(rule)` is the line it came from, in its canonical form."""

    verb: Verb
    path: str

    def __str__(self) -> str:
        return f"{self.verb} {self.path}"

    @property
    def is_glob(self) -> bool:
        return re.search(r"[*?[]", self.path) is not None

    @classmethod
    def parse(cls, line: str) -> Rule:
        """Read one line. Raises RecipeError with the line in it."""
        verb, _, path = line.strip().partition(" ")
        path = path.strip()
        if verb not in list(Verb):
            raise RecipeError("volatile", f"{line!r} does not start with copy, empty or share")
        if problem := refuse_path(path):
            raise RecipeError("volatile", f"{line!r}: {problem}")
        if any(path == point or path.startswith(f"{point}/") for point in MOUNT_POINTS):
            raise RecipeError("volatile", f"{line!r}: {path} is not the image's, it is mounted over at boot")
        return cls(Verb(verb), path)


def parse_rules(text: str) -> tuple[Rule, ...]:
    """Read a text of lines; blank lines and those that start with # do not count."""
    lines = (line.strip() for line in text.splitlines())
    return tuple(Rule.parse(line) for line in lines if line and not line.startswith("#"))


def rule_naming(verb: Verb, path: str) -> str:
    """The line that names this very path, its globs taken as letters; "" for a path that no rule can name."""
    named = re.sub(r"([*?[])", r"[\1]", path)
    try:
        return str(Rule.parse(f"{verb} {named}"))
    except RecipeError:
        return ""


def verb_of(rules: Sequence[Rule], path: str) -> Verb:
    """What the rules say of `path`, be it in the image or not: by its own rule, or by the nearest of a directory above it.

    By names alone: a rule whose path leads through a link of the image is not seen here.
    """
    parts = path.strip("/").split("/")
    for depth in range(len(parts), 0, -1):
        for rule in reversed(rules):
            named = rule.path.strip("/").split("/")
            if len(named) == depth and all(map(fnmatchcase, parts, named)):
                return rule.verb
    return Verb.SHARE


def refuse_rules(rules: Sequence[Rule]) -> None:
    """Raise RecipeError for rules nobody means: globs that match otherwise than they look, and contradictions.

    For rules as they are typed. Recipes of versions that were built are not asked: they stay readable.
    """
    if len(rules) > MOST_RULES:
        raise RecipeError("volatile", f"{len(rules)} rules are too many (at most {MOST_RULES}); use globs")
    verbs: dict[str, Rule] = {}
    for rule in rules:
        if "**" in rule.path:
            raise RecipeError(
                "volatile", f"{str(rule)!r}: ** is no more than *, neither matches a /; name the directory"
            )
        if any(_is_open(part) for part in rule.path.split("/")):
            raise RecipeError(
                "volatile", f"{str(rule)!r}: a [ is not closed before the next /; write [[] for the letter"
            )
        if verbs.setdefault(rule.path, rule).verb is not rule.verb:
            raise RecipeError("volatile", f"{str(rule)!r} contradicts {str(verbs[rule.path])!r}; keep one of them")


def _is_open(part: str) -> bool:
    """Has a [ that begins no class; what fnmatch then takes for the letter itself."""
    return "[" in re.sub(r"\[(?:!|(?!!))(?:\][^]]*|[^]]+)\]", "", part)


# What a system with dpkg writes to, and the big parts of it that only a package manager writes.
DEBIAN = parse_rules("""
copy /etc
share /etc/ssl/certs
copy /root
copy /var
share /var/cache/debconf
share /var/lib/apt
share /var/lib/dpkg
share /var/lib/flatpak
empty /tmp
empty /mnt
empty /media
""")
