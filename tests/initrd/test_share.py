"""Roots on an NFS share: read when they are needed, checked each time; a lazy one moves to memory and then needs nobody."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from images.builder import rootplan
from images.builder.tree import listing
from images.builder.verity import seal
from images.builder.volatile import DEBIAN
from tests.initrd.conftest import boot
from tests.initrd.gateway import Gateway, Version
from tests.lab import Lab, Pc
from tests.lab.nfs import Share

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.build, pytest.mark.root]

UP = "root@small:~# "
# A shell with a terminal of its own: one that is the first process ends when a job of its ends.
SHELL = f"""#!/bin/busybox sh
exec </dev/console >/dev/console 2>&1
export PATH=/bin PS1="{UP}"
while :; do busybox setsid busybox cttyhack sh -i; done
"""
FILES, FILE_BYTES = 6, 4 << 20
# What fleet-scrub.service starts; in the background, as systemd does.
SCRUB = "/run/fleet/bin/busybox sh /run/fleet/bin/scrub </dev/null >/dev/console 2>&1 &"


@pytest.fixture(scope="module")
def roomy(image: Version, tmp_path_factory: pytest.TempPathFactory) -> Version:
    """A root with a shell and some files of random bytes, too large for anything to read all of them by the way."""
    work = tmp_path_factory.mktemp("roomy")
    tree, home = work / "tree", work / "home"
    for directory in ("bin", "dev", "etc", "home/player", "proc", "run", "sbin", "sys", "usr/share"):
        (tree / directory).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None, "install Debian's busybox-static"
    shutil.copy(busybox, tree / "bin/busybox")
    for applet in ("busybox", "cat", "dmesg", "ls", "sh", "sha256sum", "sleep", "stty", "timeout"):
        if applet != "busybox":
            (tree / "bin" / applet).symlink_to("busybox")
    (tree / "sbin/init").write_text(SHELL)
    (tree / "sbin/init").chmod(0o755)
    for number in range(FILES):
        (tree / f"usr/share/{number}").write_bytes(os.urandom(FILE_BYTES))
    home.mkdir()
    rootplan.archive(rootplan.plan(listing(tree), DEBIAN, ["/home/player"]), tree, work / "plan")
    (work / "store").mkdir()
    for source, target in ((tree, work / "store/root"), (home, work / "home-squashfs")):
        packing = ["mksquashfs", str(source), str(target), "-quiet", "-no-progress", "-noappend"]
        subprocess.run(packing, check=True, capture_output=True)
    verity = seal(work / "store/root")
    return Version(
        image.kernel, image.initrd, work / "store/root", work / "plan", work / "home-squashfs", verity, check="read"
    )


@contextmanager
def on_share(
    version: Version, fetch: str, work: Path, exported: Path | None = None, numeric_owners: bool = True
) -> Iterator[tuple[Gateway, Pc, Share]]:
    with Share(exported or version.root.parent, work, numeric_owners=numeric_owners) as share:
        served = replace(version, fetch=fetch, share=share.url("root"))
        with Gateway(served) as gateway, Lab(gateway.port, network="user") as lab:
            yield gateway, lab.pc(memory_mib=512), share


def digest_of(version: Version, number: int) -> str:
    content = subprocess.run(
        ["unsquashfs", "-cat", str(version.root), f"usr/share/{number}"], check=True, capture_output=True
    ).stdout
    return subprocess.run(["sha256sum"], input=content, check=True, capture_output=True).stdout.decode()[:64]


def read(pc: Pc, number: int) -> str:
    return pc.sh(f"sha256sum /.ro/usr/share/{number}", 60)[:64]


def test_a_lazy_root_outlives_its_server_once_it_is_in_memory(roomy: Version, tmp_path: Path) -> None:
    with on_share(roomy, "lazy", tmp_path) as (gateway, pc, share):
        boot(gateway, pc)
        pc.wait_for(UP, 120)
        assert [path for path, _ in gateway.downloads if path.endswith(gateway.version.digests["root"])] == []
        assert read(pc, 0) == digest_of(roomy, 0)
        share.kill()  # before anything was copied: who reads has to wait
        pc.sh(f"{SCRUB} sha256sum /.ro/usr/share/1 >/run/one &")
        trouble = gateway.wait_for_trouble()
        assert (trouble["stage"], trouble["error"]) == ("fetch", "unreachable")
        assert pc.sh("cat /run/one; [ -e /run/fleet/kept ] || echo waits", 10) == "waits\n"
        share.start()
        pc.sh("until [ -e /run/fleet/kept ]; do sleep 1; done", 150)
        assert pc.sh("cat /run/one", 10)[:64] == digest_of(roomy, 1)
        assert "nfs" not in pc.sh("cat /proc/mounts")
        share.kill()
        assert read(pc, FILES - 1) == digest_of(roomy, FILES - 1)  # which nobody has read before
        assert {(told["stage"], told["error"]) for told in gateway.troubles} == {("fetch", "unreachable")}


@pytest.mark.parametrize("fetch", ["nfs", "lazy"])
def test_a_flipped_bit_on_the_share_is_never_given_out_and_is_reported(
    roomy: Version, tmp_path: Path, fetch: str
) -> None:
    bent = tmp_path / "bent"
    bent.mkdir()
    shutil.copy(roomy.root, bent / "root")
    place = roomy.root.read_bytes().index(
        subprocess.run(["unsquashfs", "-cat", str(roomy.root), "usr/share/3"], check=True, capture_output=True).stdout[
            1 << 20 : (1 << 20) + 64
        ]
    )
    (bent / "root").chmod(0o644)
    with (bent / "root").open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 4]))
    with on_share(roomy, fetch, tmp_path, bent) as (gateway, pc, _):
        boot(gateway, pc)
        pc.wait_for(UP, 120)
        assert read(pc, 2) == digest_of(roomy, 2)
        assert "Input/output error" in pc.sh("cat /.ro/usr/share/3 >/dev/null || true", 60)  # found where it is met
        pc.sh(SCRUB)
        trouble = gateway.wait_for_trouble()
        assert (trouble["stage"], trouble["error"]) == ("verify", "digest-mismatch")
        assert "another hash" in trouble["detail"]


def test_a_share_without_the_root_is_named(roomy: Version, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with on_share(roomy, "nfs", tmp_path, empty) as (gateway, pc, _):
        boot(gateway, pc)
        pc.wait_for("THIS PC CANNOT START: The share has no root of gamer-7", 120)
        trouble = gateway.wait_for_trouble()
        assert (trouble["stage"], trouble["error"]) == ("fetch", "short")


def test_a_share_that_names_the_owners_of_files_is_refused_before_the_root_waits_for_itself(
    roomy: Version, tmp_path: Path
) -> None:
    with on_share(roomy, "nfs", tmp_path, numeric_owners=False) as (gateway, pc, _):
        boot(gateway, pc)
        pc.wait_for("THIS PC CANNOT START: The share names the owners of files", 120)
        trouble = gateway.wait_for_trouble()
        assert (trouble["stage"], trouble["error"]) == ("root", "mount")
