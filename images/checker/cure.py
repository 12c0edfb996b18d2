"""The volatile rule that would let a path be written: the smallest one that does."""

import posixpath
import re
from collections.abc import Mapping, Sequence

from images.builder.ruling import LIMIT_BYTES
from images.builder.volatile import MOUNT_POINTS, SHARE, Rule, Verb, rule_naming, verb_of

SMALL_BYTES = 1 << 20  # a directory up to this size is copied whole
_SIZE = re.compile(r"-\S+ \S+ (\d+)")


class Root:
    """What an image's root has, as `images.builder.squashfs.files` lists it, and the rules it was planned with."""

    def __init__(self, files: Mapping[str, str], rules: Sequence[Rule]) -> None:
        self._files = files
        self._rules = rules

    def cure(self, path: str) -> str:
        """The rule that makes ``path`` writable, as a line of a recipe; empty where none would.

        There is none for what is volatile already (then something else forbids it: a unit's sandbox, say), for what is mounted
        over at boot, and for what would take more of each client's memory than one rule may.

        A new file in a directory makes that directory volatile: as an empty one, as a copy if it is small, and otherwise by the
        file's name alone, for its directory then has a link for each of its other files.
        """
        path = path.removeprefix(SHARE) if path.startswith(f"{SHARE}/") else path
        if not path.startswith("/") or _is_mounted(path) or self.is_volatile(path):
            return ""
        if path in self._files:
            return rule_naming(Verb.COPY, path) if self._below(path) <= LIMIT_BYTES else ""
        parent = posixpath.dirname(path)
        while parent != "/" and parent not in self._files:
            path, parent = parent, posixpath.dirname(parent)
        if self.is_volatile(parent):
            return ""
        named = any(
            rule.path == parent for rule in self._rules
        )  # it is shared on purpose: another rule would contradict
        if named or parent == "/" or not self._files[parent].startswith("d"):
            return rule_naming(Verb.COPY, path)
        if not any(other.startswith(f"{parent}/") for other in self._files):
            return rule_naming(Verb.EMPTY, parent)
        whole = self._below(parent) <= SMALL_BYTES
        return rule_naming(Verb.COPY, parent if whole else path)

    def is_volatile(self, path: str) -> bool:
        """Whether a rule has it in the client's memory."""
        return verb_of(self._rules, path) is not Verb.SHARE

    def _below(self, top: str) -> int:
        """Bytes of the files at ``top`` and in it."""
        sizes = (_SIZE.match(said) for path, said in self._files.items() if path == top or path.startswith(f"{top}/"))
        return sum(int(size[1]) for size in sizes if size)


def _is_mounted(path: str) -> bool:
    return any(path == point or path.startswith(f"{point}/") for point in MOUNT_POINTS)
