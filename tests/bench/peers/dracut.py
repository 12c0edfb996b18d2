"""dracut's livenet: the initrd fetches the whole squashfs over HTTP into memory (dracut.cmdline(7))."""

from __future__ import annotations

from tests.bench.guest import HOST
from tests.bench.peers.tree import System

# systemd-networkd has no configuration in minbase, so DHCP is network-legacy's; its scripts want procps.
SYSTEM = System(
    "dracut",
    ("dracut", "dracut-network", "dracut-live", "procps", "curl"),
    """
release=$(ls "$1/lib/modules")
chroot "$1" dracut --force --no-hostonly --zstd --add "network-legacy livenet dmsquash-live" \\
    --omit systemd-networkd --kver "$release" "/boot/initrd.img-$release"
cp "$1/boot/initrd.img-$release" "$2/initrd"
""",
)


def append(http_port: int) -> str:
    """The kernel command line of a flat squashfs under a writable overlay in memory."""
    return (
        f"root=live:http://{HOST}:{http_port}/{SYSTEM.name}/root.squashfs rd.live.image"
        " rd.live.overlay.overlayfs=1 ip=dhcp rd.neednet=1"
    )
