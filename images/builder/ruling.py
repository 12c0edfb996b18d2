"""Which paths of an image a volatile rule names, and what each rule would copy into the memory of a client."""

from __future__ import annotations

import fnmatch
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from images.builder.errors import RecipeError
from images.builder.tree import Entry
from images.builder.volatile import MOUNT_POINTS, Rule, Verb

MIB = 1 << 20
LIMIT_BYTES = 64 * MIB  # of one rule: it is fetched at every boot, and lives in the client's memory
TOTAL_BYTES = 256 * MIB  # of all rules together, unless the server says otherwise
_MOST_LINKS = 40  # MAXSYMLINKS of the kernel
_MOUNT = Rule(Verb.EMPTY, "")


@dataclass(frozen=True, slots=True)
class Weight:
    """What one rule copies: files (devices and the like count as such) and bytes; `problem` why it cannot be told."""

    rule: Rule
    files: int = 0
    bytes: int = 0
    problem: str = ""


class Image:
    """The entries by path, with the questions the planner asks."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries = {entry.path: entry for entry in entries}
        self._entries.setdefault("/", Entry("/", "d"))
        self._children: dict[str, list[str]] = defaultdict(list)
        for path in sorted(self._entries):
            if path != "/":
                self._children[parent_of(path)].append(path)

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def __getitem__(self, path: str) -> Entry:
        return self._entries[path]

    def children(self, path: str) -> list[str]:
        return self._children.get(path, [])

    def below(self, path: str) -> Iterator[str]:
        """`path` and all that is in it."""
        yield path
        for child in self.children(path):
            yield from self.below(child)

    def make(self, path: str) -> None:
        """Have a directory at `path` (mode 0755, root), and above it; what is there already stays."""
        if path in self._entries:
            return
        parent = parent_of(path)
        self.make(parent)
        self._entries[path] = Entry(path, "d")
        siblings = self._children[parent]
        siblings.insert(bisect_left(siblings, path), path)

    def resolve(self, rule: Rule) -> str:
        """The rule's path with the links on the way to it followed, not the one at its end."""
        pending = rule.path.split("/")[:0:-1]
        at, followed = "", 0
        while pending:
            part = pending.pop()
            if part in ("", "."):
                continue
            if part == "..":
                at = at.rpartition("/")[0]
                continue
            at = f"{at}/{part}"
            entry = self._entries.get(at)
            if entry is None or entry.kind == "d" or not any(pending):
                continue
            followed += 1
            if entry.kind != "l" or followed > _MOST_LINKS:
                raise RecipeError("volatile", f"{str(rule)!r}: {at} is not a directory in the image")
            pending += entry.target.split("/")[::-1]
            at = "" if entry.target.startswith("/") else parent_of(at).rstrip("/")
        return at or "/"

    def match(self, rule: Rule) -> list[str]:
        """The paths of the image a rule with globs means, none of them through a link."""
        found = ["/"]
        for part in rule.path.strip("/").split("/"):
            pattern = re.compile(fnmatch.translate(part))
            found = [
                child for path in found for child in self.children(path) if pattern.fullmatch(child.rpartition("/")[2])
            ]
        return found


def decide(image: Image, rules: Sequence[Rule], mount_points: Sequence[str] = ()) -> dict[str, Rule]:
    """Path → the rule that names it. The mount points, of every system and these, are empty whatever a rule says.

    Raises RecipeError, naming the rule, for one that leads nowhere.
    """
    decided = {path: rule for rule in rules for path in _named(image, rule)}
    return decided | {image.resolve(Rule(Verb.EMPTY, point)): _MOUNT for point in (*MOUNT_POINTS, *mount_points)}


def _named(image: Image, rule: Rule) -> list[str]:
    if rule.is_glob:
        return [path for path in image.match(rule) if not _is_mounted(path)]
    path = image.resolve(rule)
    if _is_mounted(path):
        raise RecipeError("volatile", f"{str(rule)!r} means {path}, which is mounted over at boot")
    return [path]


def copied(image: Image, decided: Mapping[str, Rule]) -> Iterator[tuple[Rule, Entry]]:
    """Each entry that a `copy` rule puts into the memory of a client, with that rule."""
    for top, rule in decided.items():
        pending = [top] if rule.verb is Verb.COPY and top in image else []
        while pending:
            path = pending.pop()
            yield rule, image[path]
            pending += [child for child in image.children(path) if child not in decided]


def weigh(image: Image, rules: Sequence[Rule], mount_points: Sequence[str] = ()) -> tuple[Weight, ...]:
    """What each rule would copy, in their order; a rule that leads nowhere weighs nothing and says why."""
    problems: dict[Rule, str] = {}
    for rule in rules:
        try:
            _named(image, rule)
        except RecipeError as error:
            problems[rule] = str(error).removeprefix(f"{error.field}: ")
    files: dict[Rule, int] = defaultdict(int)
    sizes: dict[Rule, int] = defaultdict(int)
    decided = decide(image, [rule for rule in rules if rule not in problems], mount_points)
    for rule, one in copied(image, decided):
        files[rule] += one.kind not in "dl"
        sizes[rule] += one.size
    return tuple(Weight(rule, files[rule], sizes[rule], problems.get(rule, "")) for rule in dict.fromkeys(rules))


def refuse_heavy(
    weights: Iterable[Weight], limit_bytes: int = LIMIT_BYTES, total_bytes: int = TOTAL_BYTES, judged_by: str = ""
) -> None:
    """Raise RecipeError, naming the rule, when one copies more than `limit_bytes` or all more than `total_bytes` (0: no limit).

    `judged_by` names the version whose files were weighed, when it is not the one under way.
    """
    by = f" as {judged_by} has it" if judged_by else ""
    heaviest = sorted(weights, key=lambda weight: -weight.bytes)
    total = sum(weight.bytes for weight in heaviest)
    if heaviest and 0 < limit_bytes < heaviest[0].bytes:
        raise RecipeError(
            "volatile",
            f"{str(heaviest[0].rule)!r} would copy {_mib(heaviest[0].bytes)} into the memory of every client{by} "
            f"(at most {_mib(limit_bytes)}); name less, or share the large parts of it",
        )
    if 0 < total_bytes < total:
        most = ", ".join(f"{str(weight.rule)!r} {_mib(weight.bytes)}" for weight in heaviest[:3] if weight.bytes)
        raise RecipeError(
            "volatile",
            f"the rules together would copy {_mib(total)} into the memory of every client{by} "
            f"(at most {_mib(total_bytes)}), most of it {most}; name less, or share the large parts",
        )


def _mib(size: int) -> str:
    # One decimal below ten: a limit of 1 MiB is not exceeded by "1 MiB".
    return f"{size / MIB:.0f} MiB" if size >= 10 * MIB else f"{size / MIB:.1f} MiB"


def _is_mounted(path: str) -> bool:
    return any(path == point or path.startswith(f"{point}/") for point in MOUNT_POINTS)


def parent_of(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def above_of(path: str) -> list[str]:
    """The directories above `path`, the root first."""
    parts = path.strip("/").split("/")[:-1] if path != "/" else []
    return ["/"][: path != "/"] + ["/" + "/".join(parts[: end + 1]) for end in range(len(parts))]
