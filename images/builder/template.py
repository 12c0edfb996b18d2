"""A home template from an archive that somebody made: looked through before anything of it is used.

`python -m images.builder.template ARCHIVE TARGET --user player` unpacks it in a process with limits of its own and prints what is
in it as JSON, or why it is refused.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import json
import lzma
import os
import re
import resource
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import IO, Any

from images.builder import squashfs
from images.builder.errors import BuildError, RecipeError
from images.builder.paths import refuse_relative
from images.builder.recipe import Recipe
from images.builder.run import CommandFailed, Runner
from images.builder.scratch import scratch
from images.builder.store import Artefact, Store

MIB = 1 << 20
_REFUSED = 3  # exit code
_MEMORY = 1024 * MIB  # bytes; a header may say that it is as long as it likes
_SHOWN = 500  # paths of a difference
# What people leave in a home and would not want on forty PCs. Not complete: nothing is.
SECRETS = {
    "ssh key": (".ssh/id_*", ".ssh/*_rsa", ".ssh/*_ed25519", ".ssh/*.pem"),
    "browser passwords": ("*/logins.json", "*/key4.db", "*/Login Data", "*/Login Data For Account"),
    "browser cookies": ("*/cookies.sqlite", "*/Cookies"),
    "password store": (".local/share/keyrings/*", ".password-store/*", "*.kdbx", ".local/share/kwalletd/*"),
    "PGP key": (".gnupg/private-keys-v1.d/*", ".gnupg/secring.gpg"),
    "access token": (
        ".netrc", ".git-credentials", ".aws/credentials", ".docker/config.json", ".config/gh/hosts.yml",
        ".kube/config", ".pgpass", ".npmrc", ".pypirc", ".config/rclone/rclone.conf",
    ),
    "history": (".bash_history", ".zsh_history", ".python_history"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """Of what an archive unpacks to."""

    bytes: int = 2048 * MIB
    files: int = 200_000


@dataclass(slots=True)
class Contents:
    """What is in a template: entries and their bytes, and of its paths those that may be secrets (path, what it looks like)."""

    files: int = 0
    bytes: int = 0
    secrets: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Template:
    """A template in the store, and how it differs from the one before: counts, and some of the paths with + - or ~ before them."""

    squashfs: Artefact
    tree_digest: str
    contents: Contents
    difference: dict[str, Any]


def make(
    archive: Path, recipe: Recipe, before: Artefact, store: Store, work: Path, daemon: Path, run: Runner
) -> Template:
    """Put the template of `archive` (tar, compressed or not, or zip) into the store; all in it belongs to the recipe's user.

    `before` is the template it is compared with. Raises RecipeError with the field "archive" for one that is refused.
    """
    home = _module(daemon.with_name("hands") / "home.py")
    owner = _owner(store.require(before), run)
    with scratch(work) as place, store.scratch() as ready:
        contents = _unpacked(archive, place / "home", recipe.user, run)
        run([*squashfs.command(place / "home", ready / "home", 2**31 - 1), *_owned(owner)])
        run(
            [
                "unsquashfs",
                "-quiet",
                "-no-progress",
                "-no-xattrs",
                "-dest",
                f"{place}/before",
                str(store.require(before)),
            ]
        )
        difference = compare(home, place / "before", place / "home", owner)
        digest = home.tree_digest(str(place / "home"), owner=owner)
        return Template(store.put(ready / "home"), digest, contents, difference)


def compare(home: ModuleType, before: Path, after: Path, owner: tuple[int, int]) -> dict[str, Any]:
    """Added, removed and changed paths; times and owners do not count."""
    old, new = (_records(home, tree, owner) for tree in (before, after))
    marked = [
        *(f"+{path}" for path in new.keys() - old.keys()),
        *(f"-{path}" for path in old.keys() - new.keys()),
        *(f"~{path}" for path in new.keys() & old.keys() if new[path] != old[path]),
    ]
    counts = {
        name: sum(path[0] == mark for path in marked)
        for name, mark in (("added", "+"), ("removed", "-"), ("changed", "~"))
    }
    return {**counts, "paths": sorted(marked, key=lambda path: path[1:])[:_SHOWN]}


def _records(home: ModuleType, tree: Path, owner: tuple[int, int]) -> dict[str, bytes]:
    root = os.fsencode(tree)
    return {home.text(path): home.record(root, path, owner=owner) for path in home.entries(root)}


def _owner(template: Path, run: Runner) -> tuple[int, int]:
    """Uid and gid of a template's user, as the top of the squashfs has them."""
    for line in run(["unsquashfs", "-lln", "-max-depth", "0", str(template)]).splitlines():
        if match := re.match(r"d\S+ +(\d+)/(\d+) ", line):
            return int(match[1]), int(match[2])
    raise BuildError(f"{template} has no top directory")


def _module(path: Path) -> ModuleType:
    """The client's own module, so that template and client compute one digest by one code; images imports no agents."""
    spec = importlib.util.spec_from_file_location("fleet_home", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _owned(owner: tuple[int, int]) -> list[str]:
    return ["-force-uid", str(owner[0]), "-force-gid", str(owner[1])]


def _unpacked(archive: Path, target: Path, user: str, run: Runner) -> Contents:
    try:
        said = run([sys.executable, "-m", __spec__.name, str(archive), str(target), "--user", user], cwd=_PROJECT)
    except CommandFailed as error:
        if error.exit_code != _REFUSED:
            raise
        raise RecipeError("archive", error.output.strip().splitlines()[-1]) from error
    found = json.loads(said.strip().splitlines()[-1])
    return Contents(found["files"], found["bytes"], [(path, what) for path, what in found["secrets"]])


_PROJECT = Path(__file__).resolve().parents[2]


class Refused(Exception):
    """The archive has something in it that no template may have."""


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an archive. `kind` is f, d, l (symbolic link), h (hard link) or a word for what else it is."""

    name: str
    kind: str
    mode: int
    target: str
    time: float
    content: IO[bytes] | None


def unpack(archive: Path, target: Path, user: str, limits: Limits | None = None) -> Contents:
    """Unpack into the new directory `target`. Raises Refused naming the entry; what was unpacked then is of no use.

    Nothing is written outside `target`, whatever the archive says: no entry lies behind a link. Of modes only the permission
    bits count. A home that lies in the archive as `player/` or `home/player/` is found there.
    """
    most, contents, youngest = limits or Limits(), Contents(), 0.0
    target.mkdir(mode=0o755)
    with _readable():
        for member in _members(archive):
            path = _trimmed(member.name)
            if path == ".":
                target.chmod(_mode(member))
                continue
            if problem := refuse_relative(path):
                raise Refused(f"{member.name!r}: {problem}")
            _place(target, path, member, contents, most)
            contents.files += 1
            youngest = max(youngest, member.time)
            if contents.files > most.files:
                raise Refused(f"it has more than {most.files} files")
    _rise(target, user)
    for directory, names, files in os.walk(target):
        os.utime(directory, (youngest, youngest))  # not the time of unpacking: the same archive, the same template
        for name in sorted([*names, *files]):
            path = os.path.relpath(os.path.join(directory, name), target)  # noqa: PTH118 - text
            contents.secrets += [
                (path, what) for what, globs in SECRETS.items() if any(fnmatch.fnmatch(path, glob) for glob in globs)
            ]
    if not contents.files:
        raise Refused("there is nothing in it")
    contents.secrets.sort()
    return contents


def _place(target: Path, path: str, member: Member, contents: Contents, most: Limits) -> None:
    place = target / path
    for parent in PurePosixPath(path).parents:
        if (target / parent).is_symlink():
            raise Refused(f"{member.name!r} lies behind the link {str(parent)!r}")
    place.parent.mkdir(parents=True, exist_ok=True)
    if member.kind != "d" and os.path.lexists(place):
        raise Refused(f"{member.name!r} is in it twice")
    match member.kind:
        case "d":
            if place.is_symlink() or (place.exists() and not place.is_dir()):
                raise Refused(f"{member.name!r} is in it twice, as a directory and as something else")
            place.mkdir(exist_ok=True)
            place.chmod(_mode(member) | 0o700)
        case "f":
            if member.mode & (stat.S_ISUID | stat.S_ISGID):
                raise Refused(f"{member.name!r} is setuid or setgid: whoever starts it gets the rights of another")
            assert member.content is not None
            with place.open("xb") as file:
                while block := member.content.read(MIB):
                    contents.bytes += len(block)
                    if contents.bytes > most.bytes:
                        raise Refused(f"it unpacks to more than {most.bytes // MIB} MiB (at {member.name!r})")
                    file.write(block)
            place.chmod(_mode(member))
            os.utime(place, (member.time, member.time))
        case "l":
            place.symlink_to(member.target)
        case "h":
            if problem := refuse_relative(member.target):
                raise Refused(f"{member.name!r} is a hard link to {member.target!r}: {problem}")
            source = target / member.target
            behind_link = any((target / parent).is_symlink() for parent in PurePosixPath(member.target).parents)
            if behind_link or source.is_symlink() or not source.is_file():
                raise Refused(f"{member.name!r} is a hard link to {member.target!r}, which is not in it")
            place.hardlink_to(source)
        case other:
            raise Refused(f"{member.name!r} is {other}: a home has none")


def _mode(member: Member) -> int:
    return member.mode & 0o777


def _trimmed(name: str) -> str:
    """A name without the `./` that tar puts before it and the `/` behind a directory."""
    name = name.rstrip("/")
    while name.startswith("./"):
        name = name[2:]
    return name or "."


def _rise(target: Path, user: str) -> None:
    """Where all lies in `player/` or `home/player/`, have that be the home."""
    for way in (f"home/{user}", user):
        inner, top = target / way, target / way.split("/")[0]
        alone = [path.name for path in target.iterdir()] == [top.name]
        if (
            not alone
            or not inner.is_dir()
            or inner.is_symlink()
            or [path.name for path in inner.parent.iterdir()] != [inner.name]
        ):
            continue
        aside = target.with_name(f"{target.name}-inner")
        inner.rename(aside)
        shutil.rmtree(target)
        aside.rename(target)
        return


@contextmanager
def _readable() -> Iterator[None]:
    """Damage shows wherever the archive is read, at its next header or in the middle of a file."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
        raise Refused(f"it cannot be read as a tar or zip archive: {error}") from error


def _members(archive: Path) -> Iterator[Member]:
    if zipfile.is_zipfile(archive) and not tarfile.is_tarfile(archive):
        yield from _zipped(archive)
        return
    with tarfile.open(archive, "r|*") as tar:  # a stream: it is read once, and no further than it is good
        for info in tar:
            kinds = (
                (info.isreg(), "f"),
                (info.isdir(), "d"),
                (info.issym(), "l"),
                (info.islnk(), "h"),
                (info.isfifo(), "a FIFO"),
            )
            odd = "a device" if info.isdev() else "of a kind nobody knows"
            kind = next((kind for holds, kind in kinds if holds), odd)
            target = _trimmed(info.linkname) if kind == "h" else info.linkname
            content = tar.extractfile(info) if kind == "f" else None
            yield Member(info.name, kind, info.mode, target, info.mtime, content)


def _zipped(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as zipped:
        for info in zipped.infolist():
            mode = info.external_attr >> 16  # as Unix's zip writes it; 0 where another did
            links = stat.S_ISLNK(mode)
            kind = (
                "d"
                if info.is_dir()
                else "l"
                if links
                else "f"
                if stat.S_IFMT(mode) in (0, stat.S_IFREG)
                else "a special file"
            )
            if info.flag_bits & 1:
                raise Refused("it is encrypted: pack it without a password")
            with zipped.open(info) as content:
                target = content.read(4096).decode("utf-8", "surrogateescape") if links else ""
                yield Member(
                    info.filename, kind, mode & 0o7777 or (0o755 if kind == "d" else 0o644), target, 0, content
                )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m images.builder.template", description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("target", type=Path, help="the directory to make of it")
    parser.add_argument("--user", required=True, help="whose home it is")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (Limits().bytes, Limits().bytes))
    try:
        contents = unpack(arguments.archive, arguments.target, arguments.user)
    except Refused as error:
        print(error)
        return _REFUSED
    except MemoryError:
        print(f"its headers want more than {_MEMORY // MIB} MiB of memory")
        return _REFUSED
    except BuildError as error:
        print(error)
        return 1
    print(json.dumps(asdict(contents)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
