"""The real initrd and kernel of a real image, with a root so small that a boot ends in seconds."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import pytest

from images.builder import rootplan
from images.builder.recipe import Recipe
from images.builder.tree import listing
from images.builder.verity import Verity, seal
from images.builder.volatile import DEBIAN
from tests.builder.images import built_image
from tests.initrd.gateway import Answer, Gateway, Version
from tests.lab import Lab, Pc
from tests.lab.recipe import ROOT_SHELL

RECIPE = Recipe(name="test-lab", suite="bookworm", files=(ROOT_SHELL,))

# Stands for systemd: says what it finds, and switches the PC off.
INIT = """#!/bin/busybox sh
exec >/dev/console 2>&1
echo 1 >/proc/sys/kernel/printk # or a word of the kernel's may come into the middle of a line
echo "ROOT IS UP as process $$"
cd /run/fleet && /bin/busybox grep -r '' plan user boot network resolv.conf
/bin/busybox stat -c '%a %n' /run/fleet/plan /run/fleet/user /home/player
/bin/busybox grep '' /etc/hostname /etc/machine-id /etc/hosts /home/player/greeting
/bin/busybox ls -l / /etc/resolv.conf /run/systemd/system /run/systemd/system/multi-user.target.wants
/bin/busybox cat /proc/mounts
echo changed >/home/player/greeting && echo changed >/etc/motd && echo CAN WRITE
echo changed >/.ro/etc/motd || echo CANNOT WRITE THE SHARE
/bin/busybox stty onlcr </dev/console # waits until all that was said is sent
/bin/busybox poweroff -f
"""


@pytest.fixture(scope="session")
def image() -> Version:
    """A whole Debian image, whose serial console has a root shell."""
    manifest, store = built_image(RECIPE)
    path = {name: store.path(part.sha256) for name, part in manifest.artefacts().items()}
    return Version(
        path["kernel"],
        path["initrd"],
        path["root"],
        path["plan"],
        path["home"],
        Verity(manifest.root_hash, manifest.root_blocks),
    )


@pytest.fixture(scope="session")
def small(image: Version, tmp_path_factory: pytest.TempPathFactory) -> Version:
    """Kernel and initrd of the image, with the root above."""
    work = tmp_path_factory.mktemp("small")
    tree, home = work / "tree", work / "home"
    for directory in ("bin", "dev", "etc", "home/player", "proc", "run", "sbin", "sys", "usr/share"):
        (tree / directory).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None, "install Debian's busybox-static"
    shutil.copy(busybox, tree / "bin/busybox")
    (tree / "sbin/init").write_text(INIT)
    (tree / "sbin/init").chmod(0o755)
    (tree / "etc/motd").write_text("unchanged\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 client\n")
    home.mkdir(mode=0o750)
    (home / "greeting").write_text("hello from the template\n")
    rootplan.archive(rootplan.plan(listing(tree), DEBIAN, ["/home/player"]), tree, work / "plan")
    for source, name in ((tree, "root"), (home, "home-squashfs")):
        packing = ["mksquashfs", str(source), str(work / name), "-quiet", "-no-progress", "-noappend"]
        subprocess.run(packing, check=True, capture_output=True)
    verity = seal(work / "root")
    return Version(image.kernel, image.initrd, work / "root", work / "plan", work / "home-squashfs", verity)


class Booting(Protocol):
    def __call__(
        self, plans: list[Answer] | None = None, append: str = "", memory_mib: int = 512
    ) -> AbstractContextManager[tuple[Gateway, Pc]]: ...


@pytest.fixture
def booting(small: Version) -> Booting:
    """`with booting(…) as (gateway, pc)`: a PC with two adapters, not yet on."""

    @contextmanager
    def context(
        plans: list[Answer] | None = None, append: str = "", memory_mib: int = 512
    ) -> Iterator[tuple[Gateway, Pc]]:
        with Gateway(small, plans) as gateway, Lab(gateway.port, network="user") as lab:
            yield gateway, lab.pc(gpu=("cirrus", "ati"), memory_mib=memory_mib)

    return context


def boot(gateway: Gateway, pc: Pc, append: str = "", mac: str = "") -> None:
    """Straight into the kernel, with the command line the real gateway writes."""
    url = f"http://10.0.2.2:{gateway.port}"
    version = gateway.version
    pc.boot(version.kernel, version.initrd, gateway.append(url, mac or pc.mac, append))
