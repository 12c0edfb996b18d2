"""Where the packages of Debian and Ubuntu come from: a recipe's mirror, or the host's own apt sources of the suite."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from images.builder.errors import BuildError

if TYPE_CHECKING:
    from images.builder.recipe import Recipe

APT = Path("/etc/apt")
KEY_PLACES = (Path("/etc/apt/keyrings"), Path("/usr/share/keyrings"))
_ONE_LINE = re.compile(r"deb(?:\s+\[(?P<options>[^\]]*)\])?\s+(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)")


@dataclass(frozen=True, slots=True)
class Source:
    """A stanza of sources.list(5)."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""

    def __str__(self) -> str:
        lines = {
            "Types": "deb",
            "URIs": " ".join(self.uris),
            "Suites": " ".join(self.suites),
            "Components": " ".join(self.components),
            "Signed-By": self.signed_by,
        }
        return "".join(f"{name}: {value}\n" for name, value in lines.items() if value)


@dataclass(frozen=True, slots=True)
class Archive:
    """The official archive of a distribution: how a source of it is known, and where it is when a host has none."""

    title: str
    suite: str  # for example
    paths: frozenset[str]  # one of these is in the path of every mirror's URL
    keyring: Path  # signs it; other keyrings of its package begin with the same two words
    mirror: str = ""  # for hosts without a source of their own; "" when only a host's own do
    pockets: tuple[str, ...] = ("",)  # of a mirror: "-updates" means the suite's, too
    key_package: str = ""  # has `keyring`

    def owns(self, source: Source) -> bool:
        """Signed by the distribution's key or by the host's keyring, below a path that its mirrors have."""
        prefix = self.keyring.name.partition("keyring")[0]
        signed = not source.signed_by or Path(source.signed_by).name.startswith(prefix)
        return signed and all(self.paths & set(urlsplit(uri).path.split("/")) for uri in source.uris)


_KEYRINGS = Path("/usr/share/keyrings")
DEBIAN = Archive(
    "Debian",
    "bookworm",
    frozenset({"debian", "debian-security"}),
    _KEYRINGS / "debian-archive-keyring.gpg",
)
UBUNTU = Archive(
    "Ubuntu",
    "noble",
    frozenset({"ubuntu", "ubuntu-ports"}),
    _KEYRINGS / "ubuntu-archive-keyring.gpg",
    mirror="http://archive.ubuntu.com/ubuntu",
    pockets=("", "-updates", "-security"),
    key_package="ubuntu-keyring or ubuntu-archive-keyring",
)


def sources(recipe: Recipe, apt: Path = APT, archive: Archive = DEBIAN) -> list[Source]:
    """The sources a recipe is built from. `apt` is the host's /etc/apt.

    Of the host's sources only the distribution's own archives count: a third party's source on the host is no reason to
    have its packages in an image. Raises BuildError when nothing is left, or the key of a mirror is missing.
    """
    if recipe.mirror:
        return [_mirror(recipe, archive, recipe.mirror)]
    suites = {recipe.suite, f"{recipe.suite}-updates", f"{recipe.suite}-security"}
    found = []
    for source in _host(apt):
        kept = replace(
            source,
            suites=tuple(suite for suite in source.suites if suite in suites),
            components=tuple(part for part in recipe.components if part in source.components),
        )
        if kept.suites and kept.components and archive.owns(kept):
            found.append(kept)
    if not found and archive.mirror:
        return [_mirror(recipe, archive, archive.mirror)]
    if not any(recipe.suite in source.suites for source in found):
        raise BuildError(
            f"the apt sources of this host have no {archive.title} archive of {recipe.suite} with "
            f"{' or '.join(recipe.components)}: give the recipe a mirror, or add the source to {apt}"
        )
    for component in recipe.components:
        if not any(component in source.components for source in found):
            raise BuildError(
                f"the apt sources of this host have no component {component} of {recipe.suite}: "
                f"add it in {apt}, or give the recipe a mirror"
            )
    return found


def _mirror(recipe: Recipe, archive: Archive, url: str) -> Source:
    """A mirror with all pockets of the suite. Its key: a text file of the recipe among keyrings, or the host's."""
    suites = tuple(f"{recipe.suite}{pocket}" for pocket in archive.pockets)
    keys = [
        file.content for file in recipe.files if Path(file.path).parent in KEY_PLACES and file.path.endswith(".asc")
    ]
    signed_by = "".join(f"\n {line.strip() or '.'}" for key in keys for line in key.splitlines())
    if not keys and archive.key_package:
        if not archive.keyring.is_file():
            raise BuildError(
                f"this host has no {archive.keyring}, which signs {url}: install the package {archive.key_package}, or "
                f"put the key into the recipe as the file {KEY_PLACES[0]}/{archive.title.lower()}.asc"
            )
        signed_by = str(archive.keyring)
    return Source((url,), suites, recipe.components, signed_by)


def _host(apt: Path) -> Iterator[Source]:
    one_line = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*.list"))]
    for path in one_line:
        for line in path.read_text().splitlines() if path.is_file() else []:
            if match := _ONE_LINE.match(line.partition("#")[0].strip()):
                options = dict(option.split("=", 1) for option in shlex.split(match["options"] or "") if "=" in option)
                yield Source(
                    _uris([match["uri"]]),
                    (match["suite"],),
                    tuple(match["components"].split()),
                    options.get("signed-by", ""),
                )
    for path in sorted((apt / "sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            values = _fields(stanza)
            if "deb" in values.get("types", "").split() and values.get("enabled", "yes") != "no":
                yield Source(
                    _uris(values.get("uris", "").split()),
                    tuple(values.get("suites", "").split()),
                    tuple(values.get("components", "").split()),
                    values.get("signed-by", ""),
                )


def _fields(stanza: str) -> dict[str, str]:
    """deb822 fields, names in lower case; a continued line is joined with a newline."""
    values: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1].isspace() and name:
            values[name] += "\n" + line.rstrip()
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            values[name] = value.strip()
    return values


def _uris(uris: list[str]) -> tuple[str, ...]:
    """Debian's cloud images name a file of mirrors, which a chroot does not have: put its lines in."""
    found: list[str] = []
    for uri in uris:
        if uri.startswith("mirror+file:"):
            listed = Path(urlsplit(uri).path)
            found += [line.split()[0] for line in listed.read_text().splitlines() if line.strip()]
        else:
            found.append(uri)
    return tuple(found)
