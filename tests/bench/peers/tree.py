"""A peer's system: the packages every image of ours has, the peer's own, and what the peer's manual asks for."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from images.builder import squashfs
from images.builder.chroot import apt, debian, sources
from images.builder.recipe import Recipe
from tests.bench.report import progress

SUITE = "bookworm"
GUEST = Path(__file__).parent.parent / "guest"
# Where each file of `GUEST` goes in every system that is measured, ours too; the getty is a program.
MEASURE = {
    "getty": "/usr/local/lib/bench/getty",
    "bench.conf": "/etc/systemd/system/serial-getty@ttyS0.service.d/bench.conf",
}
# A client of ours logs its user in on its screen; a peer does it by the same drop-in of the getty.
USER = "player"
AUTOLOGIN = f"""\
[Service]
Type=simple
ExecStart=
ExecStart=-/sbin/agetty --autologin {USER} %I $TERM
"""
# Without zstd initramfs-tools falls back to gzip in silence, and the peer would pay for unpacking that.
BASE = (debian.KERNELS["amd64"], *debian.BASE, "zstd")
_EPOCH = 1767225600  # 2026-01-01, the clock of the virtual PC


@dataclass(frozen=True)
class System:
    """A peer's system: the packages beside ours, and a shell script run outside the tree ($1) at its end.

    The script leaves the initrd in "$2/initrd"; the kernel and the packed tree are the same work for all.
    """

    name: str
    packages: tuple[str, ...]
    script: str


def built(system: System, cache: Path) -> Path:
    """The directory with `kernel`, `initrd` and `root.squashfs` of a system; built when its recipe is new."""
    recipe = Recipe(name="bench", suite=SUITE)
    described = {
        **asdict(system),
        "base": BASE,
        "sources": [str(source) for source in sources.sources(recipe)],
        "measure": [(GUEST / name).read_text() for name in MEASURE],
        "autologin": AUTOLOGIN,
        "pack": squashfs.command(Path("tree"), Path("root"), _EPOCH),
        "options": apt.DOCUMENTS,
        "without": "/boot",
    }
    key = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
    final = cache / f"{system.name}-{key}"
    if final.is_dir():
        return final
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{system.name}-", dir=cache) as scratch:
        work = Path(scratch)
        progress(f"{system.name}: installs {len(BASE) + len(system.packages)} packages and what they need")
        (work / "debian.sources").write_text("\n".join(described["sources"]))
        (work / "ready").mkdir()
        _bootstrap(system, work)
        tree = work / "tree"
        shutil.copyfile(next((tree / "boot").glob("vmlinuz-*")), work / "ready/kernel")
        for file in (tree / "boot").iterdir():  # as in our images: who boots over the network has them already
            file.unlink()
        progress(f"{system.name}: packs the tree")
        _run(squashfs.command(tree, work / "ready/root.squashfs", _EPOCH), work)
        (work / "ready").rename(final)
    return final


def _bootstrap(system: System, work: Path) -> None:
    hooks = [
        f'mkdir -p "$1{Path(target).parent}" && cp {shlex.quote(str(GUEST / name))} "$1{target}"'
        for name, target in MEASURE.items()
    ]
    (work / "autologin.conf").write_text(AUTOLOGIN)
    directory = "/etc/systemd/system/getty@tty1.service.d"
    hooks += [
        f'chroot "$1" useradd --create-home --shell /bin/bash {USER}',
        f'mkdir -p "$1{directory}" && cp {work}/autologin.conf "$1{directory}/"',
    ]
    (work / "finish").write_text(f"set -eux\n{system.script}\n")
    _run(
        [
            *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"),
            f"--include={','.join((*BASE, *system.packages))}",
            '--aptopt=Apt::Install-Recommends "false"',
            *(f"--dpkgopt={option}" for option in (*apt.DOCUMENTS, "force-unsafe-io")),
            *(f"--customize-hook={hook}" for hook in hooks),
            f'--customize-hook=sh {work}/finish "$1" {work}/ready',
            *(SUITE, str(work / "tree"), str(work / "debian.sources")),
        ],
        work,
    )


def _run(argv: list[str], work: Path) -> None:
    """Raises RuntimeError with the end of the output when it fails."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=work)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(argv)}\nended with {done.returncode}:\n{done.stdout[-4000:]}")
