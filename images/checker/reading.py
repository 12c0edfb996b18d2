"""What a report says: findings, each with the rule that would cure it."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from posixpath import basename, dirname

from images.checker.boot import Report
from images.checker.cure import Root
from images.checker.trace import refused
from images.finding_models import FindingKind
from images.findings import Found

_MOST_NAMES = 3  # new files of one directory that are findings of their own
_SAID = {"Read-only file system": FindingKind.EROFS, "Permission denied": FindingKind.EACCES}
# "touch: cannot touch '/srv/x': Read-only file system", "[Errno 30] Read-only file system: '/srv/x'"
_QUOTES = r"['\"`\u2018\u2019\u201c\u201d)]*"
_NAME = r"(/[^\s:;,'\"\u201c\u201d\u2018\u2019`()<>]+)"
_NAMED = {error: re.compile(rf"(?<![\w./]){_NAME}{_QUOTES}[:,]? {error}|{error}:? {_QUOTES}{_NAME}") for error in _SAID}
_OURS = ("fleet-check.service", "fleet-agent.service")


def findings(report: Report, root: Root) -> list[Found]:
    """Refused paths, most often met first, then failed units."""
    met: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for call in refused(report.trace):
        met[call.error, call.path][f"{call.who} ({call.call})"] += 1
    known = {path for _, path in met}
    for kind, path, said in _journal(report.journal):
        if path not in known:
            met[kind, path][said] += 1
    found = [
        Found(FindingKind(kind), path, _rule(kind, path, root), _detail(kind, path, who, root))
        for (kind, path), who in sorted(_gathered(met).items(), key=lambda item: -item[1].total())
    ]
    found += _units(report, found)
    return [replace(one, subject=_readable(one.subject), detail=_readable(one.detail)) for one in found]


def _readable(text: str) -> str:
    """A PC may send anything; what no screen shows, no database need take."""
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)


def _gathered(met: dict[tuple[str, str], Counter[str]]) -> dict[tuple[str, str], Counter[str]]:
    """Names made up anew at each start say less than their directory: where there are many, it stands for them."""
    beside = Counter((kind, dirname(path)) for kind, path in met)
    gathered: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for (kind, path), who in met.items():
        many = beside[kind, dirname(path)] > _MOST_NAMES and dirname(path) not in ("", "/")
        gathered[kind, f"{dirname(path)}/*" if many else path].update(who)
    return gathered


def _rule(kind: str, path: str, root: Root) -> str:
    if kind != FindingKind.EROFS:
        return ""
    # Any new name in a directory makes it volatile.
    return root.cure(path.removesuffix("*") + "new" if path.endswith("/*") else path)


def _detail(kind: str, path: str, who: Counter[str], root: Root) -> str:
    lines = [f"{name}, {count} times" if count > 1 else name for name, count in who.most_common(10)]
    if path.startswith("…"):
        lines.append("Which directory it was meant to be in is not known.")
    elif kind == FindingKind.EACCES:
        lines.append("Its owner and mode forbid it: no volatile rule changes that.")
    elif root.is_volatile(path):
        lines.append("It is volatile already: the unit's own sandbox keeps it from writing there.")
    return "\n".join(lines)


def _journal(text: str) -> Iterator[tuple[FindingKind, str, str]]:
    """Paths in what programs said of it: a call in a library of an unusual kind is seen here only."""
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            message = entry["MESSAGE"]
        except (ValueError, KeyError, TypeError):
            continue
        if not isinstance(message, str) or entry.get("_SYSTEMD_UNIT") in _OURS:
            continue
        who = entry.get("SYSLOG_IDENTIFIER") or entry.get("_COMM") or "?"
        for error, kind in _SAID.items():
            if named := _NAMED[error].search(message):
                yield kind, (named[1] or named[2]).rstrip("/."), f"{who} said: {message[:300]}"


def _is_why(one: Found, said: list[str]) -> bool:
    """Whether a line names this path, or its last part, and says that it is read-only: programs name it as they were told it."""
    name = re.compile(rf"(?<![\w.-]){re.escape(basename(one.subject))}(?![\w.-])")
    return bool(one.rule) and any("Read-only file system" in line and name.search(line) for line in said)


def _units(report: Report, found: list[Found]) -> Iterator[Found]:
    """Failed ones, with what they said last, and those still on their way when patience ended."""
    said: dict[str, list[str]] = {}
    unit = ""
    for line in report.units.splitlines():
        if line.startswith("    "):
            said.setdefault(unit, []).append(line[4:])
        elif line.strip():
            manager, _, name = line.partition(" ")
            unit = name if manager == "system" else f"{name} of the user"
            said.setdefault(unit, [])
    for unit, lines in said.items():
        if unit in _OURS:
            continue
        text = "\n".join(lines)
        yield Found(FindingKind.UNIT, unit, next((one.rule for one in found if _is_why(one, lines)), ""), text)
    state, *jobs = report.state.splitlines() or ["unknown"]
    for job in jobs if state in ("starting", "initializing") else []:
        fields = job.split()
        if len(fields) == 4 and fields[3] == "running" and fields[1] not in _OURS:
            yield Found(FindingKind.UNIT, fields[1], "", "It was still starting when the checker's patience ended.")
