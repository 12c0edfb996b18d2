"""Debian and its kin: a tree made by mmdebstrap, with the recipe's files, user and hooks in it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shlex
import shutil
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from images.builder.change import Change
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
_PROXY = ("Acquire::http::Proxy", "Acquire::https::Proxy")
# What apt calls in place of dpkg. Paths of archives lose the way to the tree; descriptors (--status-fd) are inherited.
_DPKG = """\
#!/bin/sh
for word in "$@"; do
    shift
    set -- "$@" "${{word#{tree}}}"
done
exec {enter} dpkg "$@"
"""
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
            raise RecipeError("packages", _no_package(recipe, follow.unknown)) from error
        raise


def change(recipe: Recipe, tree: Path, wanted: Change, cache: Path, run: Runner) -> None:
    """Remove, upgrade and install packages in a finished tree. Lists of packages are kept below `cache`.

    The host's apt finds and fetches; dpkg, and with it all code of packages, runs in the tree without a network.
    Raises RecipeError for a package that does not exist, CommandFailed for everything else that goes wrong.
    """
    apt = _Apt(recipe, tree, cache, run)
    follow = _Progress(run)
    try:
        apt("update")
        if wanted.remove:
            apt("purge", "--autoremove", *wanted.remove, watch=follow)
        if wanted.upgrade:
            apt("dist-upgrade", watch=follow)
        if wanted.install:
            apt("install", *wanted.install, watch=follow)
        if old := _older_kernels(tree, run):
            apt("purge", *old)
    except CommandFailed as error:
        if follow.unknown:
            raise RecipeError("install", _no_package(recipe, follow.unknown)) from error
        raise


class _Apt:
    """The host's apt-get on a tree: `apt("install", "tmux")`."""

    def __init__(self, recipe: Recipe, tree: Path, cache: Path, run: Runner) -> None:
        self._run = run
        self._tree = tree
        place = tree.with_name("apt")
        listed = sources(recipe)
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
        lines += run(["apt-config", "dump", *_PROXY]).splitlines()
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
        argv = ["/bin/sh", "-euc", script.script, script.name]
        inside.run_inside(tree, argv, run, network=script.network)
    except CommandFailed as error:
        raise RecipeError("hooks", f"{script.name!r} failed: {error}") from error


def finish(tree: Path, epoch: int) -> None:
    """Make the tree that of a diskless client: trimmed, and the same bytes for the same recipe."""
    trim.trim(tree, epoch)


def youngest_shipped(tree: Path, started: float) -> int:
    """The time (s) of the youngest file that a package brought into the tree since the build `started`."""
    return trim.youngest_shipped(tree, started)


def snapshot(recipe: Recipe) -> str:
    """Names the present state of the archives a recipe is built from: SHA-256 over their InRelease files; "" when not all are read."""
    digest = hashlib.sha256()
    for source in sources(recipe):
        for uri in source.uris:
            for suite in source.suites:
                address = f"{uri.rstrip('/')}/dists/{suite}/InRelease"
                try:
                    with urllib.request.urlopen(address.replace("copy:", "file:"), timeout=10) as answer:  # noqa: S310
                        digest.update(f"{address}\0".encode() + answer.read())
                except (OSError, ValueError):
                    return ""
    return digest.hexdigest()


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
    lines = run(["apt-config", "dump", *_PROXY]).splitlines()
    return [f"--aptopt={line}" for line in lines if line.startswith(_PROXY) and not line.endswith('"";')]
