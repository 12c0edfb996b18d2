"""Debian's live-boot: the initrd fetches the whole squashfs over HTTP into memory (`fetch=`, live-boot(7))."""

from __future__ import annotations

from tests.bench.guest import HOST
from tests.bench.peers.tree import System

SYSTEM = System(
    "live-boot",
    ("live-boot", "initramfs-tools"),
    'cp "$1"/boot/initrd.img-* "$2/initrd"',
)


def append(http_port: int) -> str:
    """The kernel command line; the name has to end in .squashfs."""
    return f"boot=live fetch=http://{HOST}:{http_port}/{SYSTEM.name}/root.squashfs"
