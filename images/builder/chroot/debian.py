"""Debian and its kin: a tree made by mmdebstrap, with the recipe's files, user and hooks in it."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from images.builder.chroot import inside, trim
from images.builder.chroot.sources import sources
from images.builder.errors import BuildError, RecipeError
from images.builder.recipe import Hook, Recipe
from images.builder.run import CommandFailed, Runner

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

_UNKNOWN = re.compile(
    r"E: (?:Unable to locate package (?P<name>\S+)"
    r"|Package '(?P<virtual>[^']+)' has no installation candidate"
    r"|Version '[^']*' for '(?P<version>[^']+)' was not found"
    r"|Couldn't find any package by (?:glob|regex) '(?P<pattern>[^']+)')"
)
_TO_INSTALL = re.compile(r"\d+ upgraded, (\d+) newly installed")
_MOVES = ("Unpacking ", "Setting up ")


@dataclass(frozen=True, slots=True)
class Package:
    """An installed package; what a version's package list is made of."""

    name: str
    version: str
    architecture: str


def bootstrap(recipe: Recipe, tree: Path, run: Runner) -> None:
    """Make the new directory `tree` with the base system, the kernel and the recipe's packages.

    Raises RecipeError for a package that does not exist, CommandFailed for everything else that goes wrong.
    """
    architecture = run(["dpkg", "--print-architecture"]).strip()
    if architecture not in KERNELS:
        raise BuildError(f"no kernel package is known for the architecture {architecture} of this host")
    listed = tree.with_name("debian.sources")  # mmdebstrap takes deb822 by this suffix only
    listed.write_text("\n".join(map(str, sources(recipe))))
    wanted = dict.fromkeys((KERNELS[architecture], *BASE, *recipe.packages))
    stand_in = _stand_in(tree.with_name("stand-in"), run)
    argv = [
        *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--verbose"),
        f"--include={','.join(wanted)}",
        '--aptopt=Apt::Install-Recommends "false"',
        *_proxies(run),
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


def configure(recipe: Recipe, tree: Path, run: Runner) -> None:
    """Put in what every client has, then the recipe's files, then the user and the files of its home."""
    inside.write(tree, "/etc/hostname", "client\n")
    inside.write(
        tree,
        "/etc/hosts",
        "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 client\n",
    )
    for file in recipe.files:
        inside.write(tree, file.path, file.content, file.mode)
    user = ["--uid", str(recipe.uid), "--user-group", "--create-home", "--shell", "/bin/bash", recipe.user]
    try:
        inside.run_inside(tree, ["useradd", *user], run)
    except CommandFailed as error:
        if error.exit_code in (4, 9):  # useradd(8): UID already in use, user name already in use
            raise RecipeError("user", f"{recipe.user} ({recipe.uid}): {error.output.strip()}") from error
        raise
    gid = os.stat(tree / "home" / recipe.user).st_gid  # noqa: PTH116
    for file in recipe.home_files:
        path = f"/home/{recipe.user}/{file.path}"
        inside.write(tree, path, file.content, file.mode, (recipe.uid, gid))


def hook(script: Hook, tree: Path, run: Runner) -> None:
    """Run one hook in the tree. Raises RecipeError that names it and has the line to paste."""
    try:
        inside.run_inside(tree, ["/bin/sh", "-euc", script.script, script.name], run)
    except CommandFailed as error:
        raise RecipeError("hooks", f"{script.name!r} failed: {error}") from error


def finish(tree: Path, epoch: int) -> None:
    """Make the tree that of a diskless client: trimmed, and the same bytes for the same recipe."""
    trim.trim(tree, epoch)


def youngest_shipped(tree: Path, started: float) -> int:
    """The time (s) of the youngest file that a package brought into the tree since the build `started`."""
    return trim.youngest_shipped(tree, started)


def packages(tree: Path, run: Runner) -> tuple[Package, ...]:
    """What is installed in the tree, sorted by name."""
    lines: list[str] = []
    fields = "${db:Status-Abbrev}\t${Package}\t${Version}\t${Architecture}\n"
    run(["dpkg-query", f"--admindir={tree / 'var/lib/dpkg'}", "-W", f"-f={fields}"], watch=lines.append)
    rows = (line.rstrip("\n").split("\t") for line in lines)
    return tuple(
        Package(name, version, architecture)
        for status, name, version, architecture in sorted(rows, key=lambda row: row[1:])
        if status.startswith("ii") and name != STAND_IN
    )


class _Progress:
    """Reads apt's and dpkg's lines: how many packages moved, which one apt does not know."""

    def __init__(self, run: Runner) -> None:
        self._run = run
        self._done = 0
        self._total = 0
        self.unknown = ""

    def __call__(self, line: str) -> None:
        if match := _TO_INSTALL.search(line):
            self._total += len(_MOVES) * int(match[1])
        elif line.startswith(_MOVES):
            self._done += 1
            self._run.step.progress(min(self._done, self._total), self._total)
        elif match := _UNKNOWN.search(line):
            self.unknown = self.unknown or next(group for group in match.groups() if group)


def _stand_in(directory: Path, run: Runner) -> Path:
    """Build the package that stands in for an initramfs generator."""
    (directory / "DEBIAN").mkdir(parents=True)
    (directory / "DEBIAN/control").write_text(_STAND_IN_CONTROL)
    package = directory.with_suffix(".deb")
    run(["dpkg-deb", "--root-owner-group", "--build", str(directory), str(package)])
    shutil.rmtree(directory)
    return package


def _proxies(run: Runner) -> list[str]:
    """The host's proxies for apt; mmdebstrap reads none of the host's apt.conf."""
    names = ("Acquire::http::Proxy", "Acquire::https::Proxy")
    lines = run(["apt-config", "dump", *names]).splitlines()
    return [f"--aptopt={line}" for line in lines if line.startswith(names) and not line.endswith('"";')]
