"""Fedora, RHEL and their kin: a tree made and changed by the host's dnf, which sees no rpm package of the host."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from images.builder.chroot import inside, rpmdb, trim
from images.builder.chroot import snapshot as states
from images.builder.chroot.downloads import Dnf as Downloads
from images.builder.chroot.family import Package, Upgrade
from images.builder.errors import BuildError, RecipeError, refuse_unless
from images.builder.run import CommandFailed, Runner
from images.builder.volatile import parse_rules

if TYPE_CHECKING:
    from images.builder.change import Change
    from images.builder.recipe import Recipe

title = "rpm system"

# What such a system writes to, and the big parts of it that only packages write.
volatile = parse_rules("""
copy /etc
share /etc/pki/ca-trust
share /etc/selinux
share /etc/udev/hwdb.bin
copy /root
copy /var
share /var/lib/dnf
share /var/lib/flatpak
share /var/lib/rpm
empty /tmp
empty /mnt
empty /media
""")

# What a client needs to boot, log a user in and run the daemon. Without the minimal langpack, glibc brings all
# languages (200 MB).
BASE = (
    "systemd", "systemd-udev", "dbus", "kmod", "python3", "iproute", "util-linux", "shadow-utils", "bash",
    "glibc-minimal-langpack",
)  # fmt: skip
KERNEL = "kernel"

LEAVINGS = trim.Leavings(
    units=("dnf-makecache.timer", "dnf-automatic.timer", "dnf5-makecache.timer", "fwupd-refresh.timer"),
    emptied=("var/cache/dnf", "var/cache/libdnf5", "var/lib/dnf"),
    removed=("var/log/dnf.log", "var/log/dnf.rpm.log", "var/log/dnf.librepo.log", "var/log/hawkey.log"),
)

KEYS = "/etc/pki/rpm-gpg"
_REPOSITORIES = "/etc/yum.repos.d/recipe.repo"
_RELEASE = "/etc/dnf/vars/releasever"
# kernel-install(8): an initramfs and boot loader entries that no client boots take longer than the packages.
_NO_BOOT_LOADER = ("20-grub", "50-dracut", "51-dracut-rescue", "90-loaderentry", "92-crashkernel")

_MOUNTED = ("dev", "proc", "run", "sys", "tmp")  # while something runs in the tree

_SUITE = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,29}")
# dnf's NAME[-[EPOCH:]VERSION-RELEASE][.ARCH]; the letters are those rpmbuild takes, no glob and no @group among them.
_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~^-]*(-[0-9]+:[A-Za-z0-9._+~^-]+)?")

# Beside the tree, where it goes away with the build; dnf puts the tree before these paths, whatever they are.
_PLACE = "dnf"
_MAIN = f"""\
[main]
cachedir=/../{_PLACE}/cache
persistdir=/../{_PLACE}/state
logdir=/../{_PLACE}/log
plugins=0
gpgcheck=1
best=1
skip_if_unavailable=0
install_weak_deps=0
clean_requirements_on_remove=0
installonly_limit=0
tsflags=nodocs
retries=3
timeout=20

"""

_UNKNOWN = re.compile(r"No match for argument: (\S+)")
_UNREADABLE = re.compile(r"Failed to download metadata for repo '[^']+': (.+)")
_SCRIPT = re.compile(r"Error in (\w+) scriptlet in rpm package (\S+)")
_NOT_CHECKED = re.compile(
    r"Package (\S+) is not signed|GPG key .* is not correct|Public key for (\S+) is not installed"
)
_NEWER = re.compile(r"(?m)^(\S+)\.\S+ +(\S+) +recipe-\d+ *$")  # game.noarch  2.0-1  recipe-1
_MOVED = re.compile(
    r" +(?:Installing|Upgrading|Downgrading|Reinstalling|Obsoleting|Erasing|Cleanup) +:.* (\d+)/(\d+) *$"
)


def refuse(recipe: Recipe) -> None:
    """Raise RecipeError for what dnf would not take, as `Family.refuse`."""
    refuse_unless(_SUITE, "suite", recipe.suite, "a release, such as 42 or 9.4")
    if recipe.components not in ((), ("main",)):
        raise RecipeError(
            "components", "repositories of rpm packages have none: leave it at main, name each one as a mirror"
        )
    for package in recipe.packages:
        refuse_unless(_PACKAGE, "packages", package, "the name of an rpm package")
    if not recipe.mirror.split():
        raise RecipeError("mirror", "the server has no rpm repository of its own: give the addresses of those to use")
    for url in recipe.mirror.split():
        if urlsplit(url).scheme not in ("http", "https", "file"):
            raise RecipeError("mirror", f"{url!r} is no http, https or file URL")
        if any(ord(letter) < 32 or letter in "[]" for letter in url):
            raise RecipeError("mirror", f"{url!r} has a character that no address of a repository has")


def bootstrap(recipe: Recipe, tree: Path, run: Runner) -> None:
    """Make the tree by dnf in an empty directory, as `Family.bootstrap`."""
    tree.mkdir()
    for name in (*_MOUNTED, rpmdb.PATH, "var/lib"):
        (tree / name).mkdir(parents=True)
    (tree / "tmp").chmod(0o1777)
    (tree / "var/lib/rpm").symlink_to(f"../../{rpmdb.PATH}")  # where systems before 2022 look for it
    keys = [file for file in recipe.files if file.path.startswith(f"{KEYS}/")]
    for file in keys:
        inside.write(tree, file.path, file.content, file.mode)
    inside.write(tree, _REPOSITORIES, _repositories(recipe, [file.path for file in keys], run))
    inside.write(tree, _RELEASE, f"{recipe.suite}\n")
    for plugin in _NO_BOOT_LOADER:
        trim.mask(tree, f"/etc/kernel/install.d/{plugin}.install")
    _dnf(tree, "install", (KERNEL, *BASE, *recipe.packages), run)


def change(recipe: Recipe, tree: Path, wanted: Change, cache: Path, run: Runner) -> None:
    """Change the tree's packages by the repositories it was made from, as `Family.change`. Keeps nothing in `cache`."""
    if wanted.remove:
        _dnf(tree, "remove", wanted.remove, run)
    if wanted.upgrade:
        _dnf(tree, "upgrade", (), run)
    if wanted.install:
        _dnf(tree, "install", wanted.install, run)


database = (rpmdb.PATH, _REPOSITORIES.lstrip("/"), _RELEASE.lstrip("/"), KEYS.lstrip("/"))


def pending(recipe: Recipe, tree: Path, cache: Path, run: Runner) -> tuple[Upgrade, ...]:
    """What dnf would upgrade, as `Family.pending`; of security is what the repositories' own advisories say is."""
    for name in _MOUNTED:
        (tree / name).mkdir(exist_ok=True)
    installed = {package.name: package.version for package in packages(tree, run)}
    newer, security = (_check_update(tree, options, run) for options in ((), ("--security",)))
    return tuple(
        Upgrade(name, installed.get(name, ""), version, name in security) for name, version in sorted(newer.items())
    )


def _check_update(tree: Path, options: Sequence[str], run: Runner) -> dict[str, str]:
    """Names and versions; dnf ends with 100 when there are some."""
    try:
        _dnf(tree, "check-update", options, run)
    except CommandFailed as error:
        if error.exit_code != 100:
            raise
        listed, _, _ = error.output.partition("\nObsoleting Packages")
        return {match[1]: match[2] for match in _NEWER.finditer(listed)}
    return {}


def snapshot(recipe: Recipe) -> str:
    """SHA-256 over the repomd.xml of the recipe's repositories, as `Family.snapshot`."""
    known = {"$releasever": recipe.suite, "$basearch": platform.machine()}
    return states.of(
        f"{re.sub(r'[$](releasever|basearch)', lambda name: known[name[0]], url).rstrip('/')}/repodata/repomd.xml"
        for url in recipe.mirror.split()
    )


def packages(tree: Path, run: Runner) -> tuple[Package, ...]:
    """What rpm has installed, as `Family.packages`."""
    lines: list[str] = []
    fields = "%{NAME}\t%|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE}\t%{ARCH}\n"
    run(["rpm", "--root", tree.resolve(), *rpmdb.OPTIONS, "-qa", "--qf", fields], watch=lines.append)
    rows = sorted(line.rstrip("\n").split("\t") for line in lines)
    return tuple(Package(*row) for row in rows if row[0] != "gpg-pubkey")


def settings(tree: Path) -> frozenset[str]:
    """rpm's %config files, as `Family.settings`. A question in passing: it is no command of the step that asks."""
    argv = ["rpm", "--root", str(tree.resolve()), *rpmdb.OPTIONS, "-qac"]
    listed = subprocess.run(argv, capture_output=True, check=False, text=True, errors="replace")
    if listed.returncode:
        raise BuildError(f"rpm cannot list the settings of its packages: {listed.stderr.strip()}")
    return frozenset(line for line in listed.stdout.splitlines() if line.startswith("/"))


def finish(tree: Path, epoch: int) -> None:
    """Trim the tree, as `Family.finish`, and settle its database of packages."""
    trim.trim(tree, epoch, LEAVINGS)
    rpmdb.settle(tree)


def _repositories(recipe: Recipe, keys: list[str], run: Runner) -> str:
    """yum.repos.d(5) of the recipe's mirrors. RecipeError: nobody could check what they send."""
    stanzas = []
    for number, url in enumerate(recipe.mirror.split(), 1):
        checked = True
        if not keys:
            if urlsplit(url).scheme != "file":
                raise RecipeError(
                    "files",
                    f"the key of {url} is missing: without it nobody knows whose packages these are. "
                    f"Put it in as the file {KEYS}/RPM-GPG-KEY-{recipe.name}",
                )
            run.step.output(f"Signatures are NOT checked for {url}: it is on this host, and the recipe has no key.\n")
            checked = False
        lines = [f"[recipe-{number}]", f"name={url}", f"baseurl={url}", "enabled=1", f"gpgcheck={int(checked)}"]
        lines += ["gpgkey=" + " ".join(f"file://{key}" for key in keys)] if keys else []
        stanzas.append("\n".join(lines) + "\n")
    return "\n".join(stanzas)


def _dnf(tree: Path, verb: str, names: Sequence[str], run: Runner) -> None:
    """Run the host's dnf on the tree with a configuration of its own. Raises RecipeError for what the recipe caused."""
    tree = tree.resolve()
    place = tree.with_name(_PLACE)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    repositories = inside.locate(tree, _REPOSITORIES).read_text()
    (place / "dnf.conf").write_text(_MAIN + repositories.replace(f"file://{KEYS}/", f"file://{tree}{KEYS}/"))
    (place / ".rpmmacros").write_text(rpmdb.MACROS)  # rpm has no other way to hear of it from dnf
    argv = [
        *("env", f"HOME={place}", "PYTHONUNBUFFERED=1", "dnf", f"--config={place / 'dnf.conf'}"),
        *(f"--installroot={tree}", f"--releasever={inside.locate(tree, _RELEASE).read_text().strip()}"),
        *("--setopt=reposdir=/dev/null", "--setopt=varsdir=/dev/null", "--assumeyes", verb, *names),
    ]
    follow = _Progress(run)
    try:
        inside.run_beside(tree, argv, run, follow)
    except CommandFailed as error:
        if error.exit_code > 0 and (verb, error.exit_code) != ("check-update", 100):
            follow.refuse(verb, repositories, error)
        raise
    finally:
        shutil.rmtree(place / "cache", ignore_errors=True)
    follow.refuse(verb, repositories, None)


class _Progress:
    """Reads dnf's lines: how many bytes came and packages moved, and what it stumbled over."""

    def __init__(self, run: Runner) -> None:
        self._run = run
        self._downloads = Downloads()
        self._unknown: list[str] = []
        self._unreadable = ""
        self._script: tuple[str, str] | None = None
        self._unsigned = ""
        self._conflict: list[str] = []  # lines that dnf indents below "Problem"

    def __call__(self, line: str) -> None:
        if match := _MOVED.match(line):
            self._tell(int(match[1]), int(match[2]))
        elif self._downloads(line):
            self._tell(0, self._downloads.packages)
        elif line.startswith(" Problem") or (self._conflict and line.startswith("  - ")):
            self._conflict.append(line.strip(" -\n"))
        elif match := _UNKNOWN.search(line):
            self._unknown.append(match[1])
        elif match := _UNREADABLE.search(line):
            self._unreadable = match[1]
        elif match := _SCRIPT.search(line):
            self._script = self._script or (match[1], match[2])
        elif _NOT_CHECKED.search(line):
            self._unsigned = self._unsigned or line.strip()

    def _tell(self, done: int, total: int) -> None:
        self._run.step.progress(done, total, self._downloads.done, self._downloads.total)

    def refuse(self, verb: str, repositories: str, error: CommandFailed | None) -> None:
        """Raise RecipeError for what was read. dnf goes on after some of it as if nothing had been."""
        urls = ", ".join(re.findall(r"(?m)^baseurl=(.*)$", repositories))
        if self._unreadable:
            raise RecipeError("mirror", f"{urls}: a repository cannot be read: {self._unreadable}") from error
        if self._unknown and verb == "remove":
            raise RecipeError("packages", f"{self._unknown[0]} cannot be removed: it is not installed") from error
        if self._unknown:
            names = " and no package ".join(dict.fromkeys(self._unknown))
            message = f"{urls} has no package {names}; correct the name, or add the repository that has it"
            raise RecipeError("packages", message) from error
        if self._conflict:
            raise RecipeError("packages", f"these cannot be installed together: {'; '.join(self._conflict)}") from error
        if self._unsigned:
            raise RecipeError("files", f"{self._unsigned}: none of the keys in {KEYS} is the package's") from error
        if self._script:
            kind, package = self._script
            raise RecipeError(
                "packages", f"the {kind} script of {package} failed, what it said is in the log of this step"
            ) from error
