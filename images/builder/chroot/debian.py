"""Debian, Ubuntu and their kin: a tree made by mmdebstrap, changed by apt from outside."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from images.builder.chroot import apt, snapshot, trim
from images.builder.chroot import sources as archives
from images.builder.chroot.downloads import Apt as Downloads
from images.builder.chroot.family import Package, Upgrade
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
# Inst bash [5.2.15-2+b1] (5.2.15-2+b7 Debian-Security:12/stable-security [amd64])
_INST = re.compile(r"Inst (?P<name>\S+) \[(?P<old>[^]]+)\] \((?P<new>\S+) (?P<from>[^[)]*)")
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
            *(f"--aptopt={line}" for line in apt.proxies(run)),
            *(f"--dpkgopt={option}" for option in (*apt.DOCUMENTS, "force-unsafe-io")),
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
        get = apt.Apt(sources(recipe, archive=self.archive), tree, cache, run)
        follow = _Progress(run)
        try:
            get("update")
            if wanted.remove:
                get("purge", "--autoremove", *wanted.remove, watch=follow)
            if follow.absent:
                raise RecipeError("remove", f"{follow.absent} cannot be removed: it is not installed")
            if wanted.upgrade:
                get("dist-upgrade", watch=follow)
            if wanted.install:
                get("install", *wanted.install, watch=follow)
            if old := _older_kernels(tree, run):
                get("purge", *old)
        except CommandFailed as error:
            if follow.unknown:
                field = "remove" if follow.unknown in wanted.remove else "install"
                raise RecipeError(field, _no_package(recipe, follow.unknown)) from error
            raise

    @property
    def database(self) -> tuple[str, ...]:
        """Where dpkg and apt keep what is installed, as `Family.database`."""
        return ("var/lib/dpkg/status", "var/lib/dpkg/arch", "var/lib/apt/extended_states")

    def pending(self, recipe: Recipe, tree: Path, cache: Path, run: Runner) -> tuple[Upgrade, ...]:
        """What apt would upgrade, as `Family.pending`."""
        get = apt.Apt(sources(recipe, archive=self.archive), tree, cache, run)
        found: list[Upgrade] = []

        def read(line: str) -> None:
            if match := _INST.match(line):
                found.append(Upgrade(match["name"], match["old"], match["new"], "security" in match["from"].lower()))

        get("update")
        get("--simulate", "dist-upgrade", watch=read)
        return tuple(sorted(found, key=lambda upgrade: upgrade.name))

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

    def settings(self, tree: Path) -> frozenset[str]:
        """dpkg's conffiles, as `Family.settings`: in its status, one line each: path, MD5, and perhaps a word such as "obsolete"."""
        rows = re.findall(
            r"^ (/\S+) [0-9a-f]{32}$", (tree / "var/lib/dpkg/status").read_text(errors="replace"), re.MULTILINE
        )
        return frozenset(rows)

    def finish(self, tree: Path, epoch: int) -> None:
        """Trim the tree, as `Family.finish`."""
        trim.trim(tree, epoch, LEAVINGS)


DEBIAN = Distribution("Debian", KERNELS, archives.DEBIAN)
UBUNTU = Distribution("Ubuntu", dict.fromkeys(KERNELS, "linux-image-generic"), archives.UBUNTU)


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
    """Reads apt's and dpkg's lines: how many bytes came and packages moved, which one apt does not know."""

    def __init__(self, run: Runner) -> None:
        self._run = run
        self._moves = 0
        self._packages = 0
        self._downloads = Downloads()
        self.unknown = ""
        self.absent = ""  # a package to be removed that is not there

    def __call__(self, line: str) -> None:
        if match := _TO_INSTALL.search(line):
            self._packages += int(match[1]) + int(match[2])
        elif line.startswith(_MOVES):
            self._moves += 1
            self._tell()
        elif self._downloads(line):
            self._tell()
        elif match := _UNKNOWN.search(line):
            self.unknown = self.unknown or next(group for group in match.groups() if group)
        elif match := _NOT_INSTALLED.search(line):
            self.absent = self.absent or match["name"]

    def _tell(self) -> None:
        done = min(self._moves // len(_MOVES), self._packages)  # unpacked is half the way
        self._run.step.progress(done, self._packages, self._downloads.done, self._downloads.total)


def _stand_in(directory: Path, run: Runner) -> Path:
    """Build the package that stands in for an initramfs generator."""
    (directory / "DEBIAN").mkdir(parents=True)
    (directory / "DEBIAN/control").write_text(_STAND_IN_CONTROL)
    package = directory.with_suffix(".deb")
    run(["dpkg-deb", "--root-owner-group", "--build", str(directory), str(package)])
    shutil.rmtree(directory)
    return package
