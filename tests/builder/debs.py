"""An archive in the shape of Ubuntu's, made of Debian's packages: three pockets, two components, one key."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from images.builder.chroot.debian import BASE, KERNELS
from tests.builder.images import PROJECT
from tests.builder.rpms import run
from tests.builder.signer import Signer

CACHE = PROJECT / "var/cache/test-ubuntu"
SUITE = "noble"
# Where they are, and nowhere else: a build that looks in main of the suite alone cannot succeed.
ELSEWHERE = {"kmod": (f"{SUITE}-updates", "main"), "udev": (f"{SUITE}-security", "main"), "sl": (SUITE, "universe")}
_KERNEL = """\
Package: linux-image-generic
Version: 1
Architecture: amd64
Maintainer: Nobody <nobody@example.org>
Depends: {}
Description: names the kernel
"""


def archive(place: Path, signer: Signer) -> None:
    """Make an archive in the directory `place`, signed by `signer`; its packages come by the host's apt (90 MB)."""
    pool = place / "pool"
    shutil.copytree(_pool(), pool)
    (place / "kernel/DEBIAN").mkdir(parents=True)
    (place / "kernel/DEBIAN/control").write_text(_KERNEL.format(KERNELS["amd64"]))
    run("dpkg-deb", "--root-owner-group", "--build", place / "kernel", pool / "linux-image-generic_1_amd64.deb")
    shutil.rmtree(place / "kernel")
    stanzas: dict[tuple[str, str], list[str]] = {
        (f"{SUITE}{pocket}", part): [] for pocket in ("", "-updates", "-security") for part in ("main", "universe")
    }
    for package in sorted(pool.iterdir()):
        content = package.read_bytes()
        control = run("dpkg-deb", "--field", package).rstrip()
        own = f"Filename: pool/{package.name}\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"
        where = ELSEWHERE.get(package.name.partition("_")[0], (SUITE, "main"))
        stanzas[where].append(f"{control}\n{own}")
    for (suite, part), found in stanzas.items():
        index = place / "dists" / suite / part / "binary-amd64/Packages"
        index.parent.mkdir(parents=True)
        index.write_text("\n".join(found))
    for suite in {suite for suite, _ in stanzas}:
        _release(place / "dists" / suite, suite, signer)


def _release(directory: Path, suite: str, signer: Signer) -> None:
    lines = [f"Origin: Ubuntu\nSuite: {suite}\nCodename: {SUITE}\nDate: Sat, 01 Nov 2025 00:00:00 UTC"]
    lines += ["Architectures: amd64\nComponents: main universe\nSHA256:"]
    for index in sorted(directory.rglob("Packages")):
        content = index.read_bytes()
        lines.append(f" {hashlib.sha256(content).hexdigest()} {len(content)} {index.relative_to(directory)}")
    release = directory / "Release"
    release.write_text("\n".join(lines) + "\n")
    signer.sign_text(release, directory / "InRelease")


def _pool() -> Path:
    """All that an image needs, fetched once."""
    CACHE.mkdir(parents=True, exist_ok=True)
    pool = CACHE / "pool"
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not pool.is_dir():
            work = CACHE / "work"
            shutil.rmtree(work, ignore_errors=True)
            (work / "partial").mkdir(parents=True)
            _fetch(
                work, ["?essential", "apt", "ca-certificates", KERNELS["amd64"], *BASE, *ELSEWHERE, "busybox-static"]
            )
            (work / "partial").rmdir()
            (work / "lock").unlink()
            work.rename(pool)
    return pool


def _fetch(into: Path, packages: Sequence[str]) -> None:
    options = {"Dir::State::Status": "/dev/null", "Dir::Cache::Archives": f"{into}", "APT::Sandbox::User": "root"}
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    run("apt-get", *words, "--yes", "--no-install-recommends", "--download-only", "install", *packages)
