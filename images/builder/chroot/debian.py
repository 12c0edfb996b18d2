"""Debian, Ubuntu and their kin: a tree made by mmdebstrap, changed by apt from outside."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from images.builder.chroot import inside, snapshot, trim
from images.builder.chroot import sources as archives
from images.builder.chroot.family import Package
from images.builder.chroot.sources import sources
from images.builder.errors import BuildError, RecipeError, refuse_unless
from images.builder.run import CommandFailed, Runner
from images.builder.volatile import DEBIAN as VOLATILE
from images.builder.volatile import Rule

if TYPE_CHECKING:
    from images.builder.change import Change
    from images.builder.recipe import Recipe

# What a client needs to boot, log a user in and run the daemon (python3: the minimal one has no json).
BASE = ("systemd-sysv", "udev", "dbus", "libpam-systemd", "kmod", "python3", "iproute2", "login", "passwd")
KERNELS = {"amd64": "linux-image-amd64", "arm64": "linux-image-arm64"}

# Debian's kernels want some initramfs generator. Clients boot ours, so this empty package says it is one: no
# initramfs is packed at each build, and nothing of a generator is in the image.
STAND_IN = "stateless-no-initramfs"
_STAND_IN_CONTROL = f"""\
Package: {STAND_IN}
Version: 1
Architecture: all
Maintainer: Stateless Fleet <root@localhost>
Provides: linux-initramfs-tool
Description: stands in for an initramfs generator
 Stateless clients boot an initrd that their server builds.
"""

DOCUMENTS = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/lintian/*",
)

LEAVINGS = trim.Leavings(
    units=("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer"),
    emptied=("var/cache/apt", "var/lib/apt/lists", "var/log/apt"),
    removed=(
        "etc/apt/apt.conf.d/99mmdebstrap",
        *(f"var/cache/debconf/{name}.dat-old" for name in ("config", "templates")),
        *(f"var/lib/dpkg/{name}-old" for name in ("available", "diversions", "status", "statoverride")),
        *(f"var/lib/dpkg/{name}" for name in ("lock", "lock-frontend", "triggers/Lock")),
        *(f"var/log/{name}.log" for name in ("bootstrap", "dpkg", "alternatives")),
    ),
)

_SUITE = re.compile(r"[a-z][a-z0-9.-]{0,63}")
_COMPONENT = re.compile(r"[a-z][a-z0-9-]{0,63}")
# Debian Policy 5.6.1 (name) and 5.6.12 (version), with apt's :architecture and =version.
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9][a-z0-9-]*)?(=[0-9][A-Za-z0-9.+:~-]*)?")

_UNKNOWN = re.compile(
    r"E: (?:Unable to locate package (?P<name>\S+)"
    r"|Package '(?P<virtual>[^']+)' has no installation candidate"
    r"|Version '[^']*' for '(?P<version>[^']+)' was not found"
    r"|Couldn't find any package by (?:glob|regex) '(?P<pattern>[^']+)')"
)
# What apt calls in place of dpkg. Paths of archives lose the way to the tree; descriptors (--status-fd) are inherited.
_DPKG = """\
#!/bin/sh
for word in "$@"; do
    shift
    set -- "$@" "${{word#{tree}}}"
done
exec {enter} dpkg "$@"
"""
_NOT_INSTALLED = re.compile(r"Package '(?P<name>[^']+)' is not installed, so not removed")
_TO_INSTALL = re.compile(r"(\d+) upgraded, (\d+) newly installed")
_MOVES = ("Unpacking ", "Setting up ")


@dataclass(frozen=True, slots=True)
class Distribution:
    """A family of distributions with dpkg: its words, its kernels and its archive."""

    title: str
    kernels: Mapping[str, str]  # architecture → the package that depends on the present kernel
    archive: archives.Archive
    volatile: tuple[Rule, ...] = VOLATILE

    def refuse(self, recipe: Recipe) -> None:
        """Raise RecipeError for what apt would not take, as `Family.refuse`."""
        refuse_unless(_SUITE, "suite", recipe.suite, f"the name of a suite such as {self.archive.suite}")
        if not recipe.components:
            raise RecipeError("components", "name at least one, such as main")
        for component in recipe.components:
            refuse_unless(_COMPONENT, "components", component, "the name of a component such as main")
        for package in recipe.packages:
            refuse_unless(_PACKAGE, "packages", package, f"the name of a {self.title} package (Debian Policy 5.6.1)")
        if recipe.mirror and urlsplit(recipe.mirror).scheme not in ("http", "https", "file", "copy"):
            raise RecipeError("mirror", f"{recipe.mirror!r} is no http, https, file or copy URL")
        if any(letter.isspace() for letter in recipe.mirror):
            raise RecipeError("mirror", f"{recipe.mirror!r} has white space in it")

    def bootstrap(self, recipe: Recipe, tree: Path, run: Runner) -> None:
        """Make the tree by mmdebstrap, as `Family.bootstrap`."""
        architecture = run(["dpkg", "--print-architecture"]).strip()
        if architecture not in self.kernels:
            raise BuildError(f"no kernel package is known for the architecture {architecture} of this host")
        listed = tree.with_name("debian.sources")  # mmdebstrap takes deb822 by this suffix only
        listed.write_text("\n".join(map(str, sources(recipe, archive=self.archive))))
        wanted = dict.fromkeys((self.kernels[architecture], *BASE, *recipe.packages))
        stand_in = _stand_in(tree.with_name("stand-in"), run)
        argv = [
            *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--verbose"),
            f"--include={','.join(wanted)}",
            '--aptopt=Apt::Install-Recommends "false"',
            *(f"--aptopt={line}" for line in _proxies(run)),
            *(f"--dpkgopt={option}" for option in (*DOCUMENTS, "force-unsafe-io")),
            f'--essential-hook=dpkg --root="$1" --log=/dev/null --install {stand_in}',
            *(recipe.suite, str(tree), str(listed)),
        ]
        follow = _Progress(run)
        try:
            run(argv, watch=follow)
        except CommandFailed as error:
            if follow.unknown:
                raise RecipeError("packages", _no_package(recipe, follow.unknown)) from error
            raise

    def change(self, recipe: Recipe, tree: Path, wanted: Change, cache: Path, run: Runner) -> None:
        """Change the tree's packages by the host's apt, as `Family.change`.

        The host's apt finds and fetches; dpkg, and with it all code of packages, runs in the tree without a network.
        """
        apt = _Apt(sources(recipe, archive=self.archive), tree, cache, run)
        follow = _Progress(run)
        try:
            apt("update")
            if wanted.remove:
                apt("purge", "--autoremove", *wanted.remove, watch=follow)
            if follow.absent:
                raise RecipeError("remove", f"{follow.absent} cannot be removed: it is not installed")
            if wanted.upgrade:
                apt("dist-upgrade", watch=follow)
            if wanted.install:
                apt("install", *wanted.install, watch=follow)
            if old := _older_kernels(tree, run):
                apt("purge", *old)
        except CommandFailed as error:
            if follow.unknown:
                field = "remove" if follow.unknown in wanted.remove else "install"
                raise RecipeError(field, _no_package(recipe, follow.unknown)) from error
            raise

    def snapshot(self, recipe: Recipe) -> str:
        """SHA-256 over the InRelease files of the recipe's archives, as `Family.snapshot`."""
        return snapshot.of(
            f"{uri.replace('copy:', 'file:').rstrip('/')}/dists/{suite}/InRelease"
            for source in sources(recipe, archive=self.archive)
            for uri in source.uris
            for suite in source.suites
        )

    def packages(self, tree: Path, run: Runner) -> tuple[Package, ...]:
        """What dpkg has installed, as `Family.packages`."""
        lines: list[str] = []
        fields = "${db:Status-Abbrev}\t${Package}\t${Version}\t${Architecture}\n"
        run(["dpkg-query", f"--admindir={tree / 'var/lib/dpkg'}", "-W", f"-f={fields}"], watch=lines.append)
        rows = (line.rstrip("\n").split("\t") for line in lines)
        return tuple(
            Package(name, version, architecture)
            for status, name, version, architecture in sorted(rows, key=lambda row: row[1:])
            if status.startswith("ii") and name != STAND_IN
        )

    def finish(self, tree: Path, epoch: int) -> None:
        """Trim the tree, as `Family.finish`."""
        trim.trim(tree, epoch, LEAVINGS)


DEBIAN = Distribution("Debian", KERNELS, archives.DEBIAN)
UBUNTU = Distribution("Ubuntu", dict.fromkeys(KERNELS, "linux-image-generic"), archives.UBUNTU)


class _Apt:
    """The host's apt-get on a tree: `apt("install", "tmux")`."""

    def __init__(self, listed: list[archives.Source], tree: Path, cache: Path, run: Runner) -> None:
        self._run = run
        self._tree = tree
        place = tree.with_name("apt")
        self._lists = cache / hashlib.sha256("\n".join(map(str, listed)).encode()).hexdigest()[:16] / "lists"
        for directory in (place / "sources.d", place / "empty", self._lists / "partial"):
            directory.mkdir(parents=True, exist_ok=True)
        (tree / "var/cache/apt/archives/partial").mkdir(parents=True, exist_ok=True)
        (place / "sources.d/recipe.sources").write_text("\n".join(map(str, listed)))
        dpkg = place / "dpkg"
        dpkg.write_text(_DPKG.format(enter=shlex.join(inside.entering(tree)), tree=shlex.quote(str(tree))))
        dpkg.chmod(0o755)
        options = {
            "Dir": f"{tree}/",
            # The host's own settings stay the host's: its hooks after dpkg, for one, are for itself.
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": f"{place}/empty",
            "Dir::Etc::SourceList": "/dev/null",
            "Dir::Etc::SourceParts": f"{place}/sources.d",
            "Dir::Etc::Trusted": "/etc/apt/trusted.gpg",
            "Dir::Etc::TrustedParts": "/etc/apt/trusted.gpg.d",
            "Dir::State::Lists": str(self._lists),
            "Dir::Cache": f"{self._lists.parent}/",
            "Dir::Cache::archives": f"{tree}/var/cache/apt/archives",
            "Dir::Log": f"{place}/empty",
            "Dir::Bin::dpkg": str(dpkg),
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",  # the lists are below a directory that only root reads
            "Acquire::Languages": "none",
        }
        lines = [f'{name} "{value}";' for name, value in options.items()]
        chosen = (*DOCUMENTS, "force-unsafe-io", "force-confdef", "force-confold")
        lines += [f'DPkg::Options:: "--{option}";' for option in chosen]
        # Else apt would ask dpkg some twenty times for what does not change.
        database = ["dpkg", f"--admindir={tree / 'var/lib/dpkg'}"]
        known = [
            *run(["dpkg", "--print-architecture"]).split(),
            *run([*database, "--print-foreign-architectures"]).split(),
        ]
        lines += [f'APT::Architectures:: "{architecture}";' for architecture in known]
        lines += _proxies(run)
        (place / "apt.conf").write_text("\n".join(lines) + "\n")
        self._argv = ["env", f"APT_CONFIG={place}/apt.conf", "apt-get", "--yes", "--quiet"]

    def __call__(self, *words: str, watch: Callable[[str], object] | None = None) -> None:
        # Builds side by side have these lists in common; apt does not wait for their lock, so we do.
        lock = os.open(self._lists, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with inside.no_services(self._tree):
                self._run([*self._argv, *words], watch=watch)
        finally:
            os.close(lock)


def _older_kernels(tree: Path, run: Runner) -> list[str]:
    """The packages of all kernels but the newest: an upgrade installs a new one beside the old."""
    releases = [kernel.name.removeprefix("vmlinuz-") for kernel in (tree / "boot").glob("vmlinuz-*")]
    if len(releases) < 2:
        return []
    newest = max(
        releases, key=lambda release: [int(part) if part.isdigit() else 0 for part in re.split(r"[.-]", release)]
    )
    names = [f"linux-image-{release}" for release in releases if release != newest]
    owned = run(["dpkg-query", f"--admindir={tree / 'var/lib/dpkg'}", "-W", "-f=${Package}\n"]).split()
    return [name for name in names if name in owned]


def _no_package(recipe: Recipe, name: str) -> str:
    return (
        f"{recipe.suite} ({' '.join(recipe.components)}) has no package {name}; "
        "correct its name, or add the component that has it"
    )


class _Progress:
    """Reads apt's and dpkg's lines: how many packages moved, which one apt does not know."""

    def __init__(self, run: Runner) -> None:
        self._run = run
        self._done = 0
        self._total = 0
        self.unknown = ""
        self.absent = ""  # a package to be removed that is not there

    def __call__(self, line: str) -> None:
        if match := _TO_INSTALL.search(line):
            self._total += len(_MOVES) * (int(match[1]) + int(match[2]))
        elif line.startswith(_MOVES):
            self._done += 1
            self._run.step.progress(min(self._done, self._total), self._total)
        elif match := _UNKNOWN.search(line):
            self.unknown = self.unknown or next(group for group in match.groups() if group)
        elif match := _NOT_INSTALLED.search(line):
            self.absent = self.absent or match["name"]


def _stand_in(directory: Path, run: Runner) -> Path:
    """Build the package that stands in for an initramfs generator."""
    (directory / "DEBIAN").mkdir(parents=True)
    (directory / "DEBIAN/control").write_text(_STAND_IN_CONTROL)
    package = directory.with_suffix(".deb")
    run(["dpkg-deb", "--root-owner-group", "--build", str(directory), str(package)])
    shutil.rmtree(directory)
    return package


def _proxies(run: Runner) -> list[str]:
    """The host's proxies for apt, which reads none of the host's apt.conf here."""
    names = ("Acquire::http::Proxy", "Acquire::https::Proxy")
    lines = run(["apt-config", "dump", *names]).splitlines()
    return [line for line in lines if line.startswith(names) and not line.endswith('"";')]
