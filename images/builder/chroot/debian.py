"""Debian, Ubuntu and their kin: a tree made by mmdebstrap, changed by apt from outside."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from images.builder.chroot import inside, trim
from images.builder.chroot import sources as archives
from images.builder.chroot.family import Package
from images.builder.chroot.sources import sources
from images.builder.errors import BuildError, RecipeError, refuse_unless
from images.builder.run import CommandFailed, Runner
from images.builder.volatile import DEBIAN as VOLATILE
from images.builder.volatile import Rule

if TYPE_CHECKING:
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
                raise RecipeError(
                    "packages",
                    f"{recipe.suite} ({' '.join(recipe.components)}) has no package {follow.unknown}; "
                    "correct its name, or add the component that has it",
                ) from error
            raise

    def change(self, tree: Path, install: Sequence[str], remove: Sequence[str], upgrade: bool, run: Runner) -> None:
        """Change the packages by the host's apt, which has the host's proxies and resolver, as `Family.change`."""
        place = tree.with_name("apt")
        shutil.rmtree(place, ignore_errors=True)
        (place / "lists/partial").mkdir(parents=True)
        (place / "apt.conf").write_text("".join(f"{line}\n" for line in (*_outside(tree, place), *_proxies(run))))
        apt = ["env", f"APT_CONFIG={place / 'apt.conf'}", "apt-get", "--yes"]
        changes = {"full-upgrade": [] if upgrade else None, "remove": remove or None, "install": install or None}
        run([*apt, "update"])
        try:
            for verb, names in changes.items():
                if names is not None:
                    follow = _Progress(run)
                    try:
                        inside.run_beside(tree, [*apt, verb, *names], run, follow)
                    except CommandFailed as error:
                        if follow.unknown:
                            message = f"the sources of this image have no package {follow.unknown}; correct its name"
                            raise RecipeError("packages", message) from error
                        raise
                    if follow.absent:
                        raise RecipeError("packages", f"{follow.absent} cannot be removed: it is not installed")
        finally:
            shutil.rmtree(place / "lists")

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


def _outside(tree: Path, place: Path) -> list[str]:
    """What apt.conf says so that apt works on the tree from outside; indices stay in `place`."""
    options = {
        "Dir": f"{tree}",
        "Dir::State::Lists": f"{place}/lists/",
        "Dir::Log": "/dev/null",
        "DPkg::Chroot-Directory": f"{tree}",
        "APT::Sandbox::User": "root",  # _apt of the host cannot read the scratch directory
        "APT::Install-Recommends": "false",
        "APT::Keep-Downloaded-Packages": "false",
        "DPkg::Use-Pty": "false",
        "Acquire::Languages": "none",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
    }
    dpkg = ("--force-unsafe-io", "--force-confdef", "--force-confold")
    return [
        *(f'{name} "{value}";' for name, value in options.items()),
        *(f'DPkg::Options:: "{option}";' for option in dpkg),
    ]
