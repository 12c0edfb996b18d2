"""The recipe of an image as frozen data, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlsplit

from images.builder.errors import RecipeError
from images.builder.paths import refuse_path, refuse_relative
from images.builder.volatile import DEFAULTS, MOUNT_POINTS, Rule

FAMILIES = ("debian",)

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SUITE = re.compile(r"[a-z][a-z0-9.-]{0,63}")
_COMPONENT = re.compile(r"[a-z][a-z0-9-]{0,63}")
# Debian Policy 5.6.1 (name) and 5.6.12 (version), with apt's :architecture and =version.
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9][a-z0-9-]*)?(=[0-9][A-Za-z0-9.+:~-]*)?")
# NAME_REGEX of Debian's adduser.conf(5); 32 is the limit of useradd(8).
_USER = re.compile(r"[a-z][-a-z0-9_]{0,31}")
_HOOK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,63}")


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """A text file put into the image, owned by root; in a home, by the user and with a relative path."""

    path: str
    content: str
    mode: int = 0o644

    def to_dict(self) -> dict[str, str]:
        return {"path": self.path, "content": self.content, "mode": f"{self.mode:04o}"}


@dataclass(frozen=True, slots=True)
class Hook:
    """A shell script (`sh -eu`) run as root in the finished chroot, without a network unless it needs one.

    Its name is for people.
    """

    name: str
    script: str
    network: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "script": self.script, "network": self.network}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an image is made of. Refuses with RecipeError, naming the field, what could not be built."""

    name: str
    suite: str
    family: str = "debian"
    components: tuple[str, ...] = ("main",)
    packages: tuple[str, ...] = ()
    files: tuple[RecipeFile, ...] = ()
    hooks: tuple[Hook, ...] = ()
    volatile: tuple[Rule, ...] = DEFAULTS["debian"]
    user: str = "player"
    uid: int = 1000
    home_files: tuple[RecipeFile, ...] = ()
    mirror: str = ""  # http(s) URL of an archive; empty: the host's own apt sources of the suite

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise RecipeError("family", f"{self.family!r} is not one of {', '.join(FAMILIES)}")
        _match(_NAME, "name", self.name, "lower-case letters, digits and inner hyphens, at most 63")
        _match(_SUITE, "suite", self.suite, "the name of a suite such as bookworm")
        if not self.components:
            raise RecipeError("components", "name at least one, such as main")
        for component in self.components:
            _match(_COMPONENT, "components", component, "the name of a component such as main")
        for package in self.packages:
            _match(_PACKAGE, "packages", package, "the name of a Debian package (Policy 5.6.1)")
        for file in self.files:
            _refuse("files", refuse_path(file.path) or ("it is a directory" if file.path == "/" else ""))
            if any(file.path == point or file.path.startswith(f"{point}/") for point in MOUNT_POINTS):
                raise RecipeError("files", f"{file.path} would not be seen: it is mounted over at boot")
            if file.path.startswith(f"/home/{self.user}/"):
                raise RecipeError("files", f"{file.path} is in the home of the user: put it into home_files")
        for file in self.home_files:
            _refuse("home_files", refuse_relative(file.path))
        for field, files in (("files", self.files), ("home_files", self.home_files)):
            _refuse_twice(field, (file.path for file in files))
            for file in files:
                if not 0 <= file.mode <= 0o7777:
                    raise RecipeError(field, f"{file.path}: {file.mode:o} is no mode")
        for hook in self.hooks:
            _match(_HOOK, "hooks", hook.name, "letters, digits, spaces and . _ -")
        _refuse_twice("hooks", (hook.name for hook in self.hooks))
        _match(_USER, "user", self.user, "a lower-case letter, then letters, digits, - and _, at most 32")
        if not 1000 <= self.uid <= 59999:  # Debian Policy 9.2.2: dynamically allocated user accounts
            raise RecipeError("uid", f"{self.uid} is not between 1000 and 59999")
        if self.mirror and urlsplit(self.mirror).scheme not in ("http", "https", "file", "copy"):
            raise RecipeError("mirror", f"{self.mirror!r} is no http, https, file or copy URL")
        if any(letter.isspace() for letter in self.mirror):
            raise RecipeError("mirror", f"{self.mirror!r} has white space in it")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Read what `to_dict` gave, or a part of it: what is left out has its default.

        Raises RecipeError for unknown keys and wrong types, too.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise RecipeError(str(unknown[0]), f"unknown; a recipe has {', '.join(sorted(known))}")
        for required in ("name", "suite"):
            if required not in data:
                raise RecipeError(required, "missing")
        values: dict[str, Any] = {}
        for name in ("name", "suite", "family", "user", "mirror"):
            if name in data:
                values[name] = _typed(name, data[name], str)
        if "uid" in data:
            values["uid"] = _typed("uid", data["uid"], int)
        for name in ("components", "packages"):
            if name in data:
                values[name] = tuple(_typed(name, item, str) for item in _typed(name, data[name], list))
        for name in ("files", "home_files"):
            if name in data:
                values[name] = tuple(_file(name, item) for item in _typed(name, data[name], list))
        if "hooks" in data:
            values["hooks"] = tuple(_hook(item) for item in _typed("hooks", data["hooks"], list))
        if "volatile" in data:
            lines = (_typed("volatile", item, str) for item in _typed("volatile", data["volatile"], list))
            values["volatile"] = tuple(Rule.parse(line) for line in lines)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values; modes are octal text, volatile rules are lines."""
        return {
            "name": self.name,
            "family": self.family,
            "suite": self.suite,
            "components": list(self.components),
            "packages": list(self.packages),
            "files": [file.to_dict() for file in self.files],
            "hooks": [hook.to_dict() for hook in self.hooks],
            "volatile": [str(rule) for rule in self.volatile],
            "user": self.user,
            "uid": self.uid,
            "home_files": [file.to_dict() for file in self.home_files],
            "mirror": self.mirror,
        }

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the recipe's canonical JSON."""
        return hashlib.sha256(canonical_json(self.to_dict())).hexdigest()


def canonical_json(value: object) -> bytes:
    """The one spelling of a JSON value that is hashed: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogateescape"
    )


def _match(pattern: re.Pattern[str], field: str, value: str, wanted: str) -> None:
    if not pattern.fullmatch(value):
        raise RecipeError(field, f"{value!r} is not {wanted}")


def _refuse(field: str, problem: str) -> None:
    if problem:
        raise RecipeError(field, problem)


def _refuse_twice(field: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise RecipeError(field, f"{value} is there twice")
        seen.add(value)


def _typed(field: str, value: Any, wanted: type) -> Any:
    if not isinstance(value, wanted) or isinstance(value, bool):
        names = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}
        raise RecipeError(field, f"{value!r} is not {names[wanted]}")
    return value


def _strings(field: str, value: Any, keys: set[str]) -> dict[str, str]:
    item = _typed(field, value, dict)
    if set(item) != keys:
        raise RecipeError(field, f"{sorted(item)} should be {sorted(keys)}")
    return {key: _typed(field, item[key], str) for key in keys}


def _hook(value: Any) -> Hook:
    item = dict(_typed("hooks", value, dict))
    network = item.pop("network", False)
    if not isinstance(network, bool):
        raise RecipeError("hooks", f"network {network!r} is neither true nor false")
    return Hook(**_strings("hooks", item, {"name", "script"}), network=network)


def _file(field: str, value: Any) -> RecipeFile:
    item = _strings(field, {"mode": "0644", **_typed(field, value, dict)}, {"path", "content", "mode"})
    if not re.fullmatch(r"[0-7]{3,5}", item["mode"]):
        raise RecipeError(field, f"{item['path']}: mode {item['mode']!r} is not octal, such as 0644")
    return RecipeFile(item["path"], item["content"], int(item["mode"], 8))
