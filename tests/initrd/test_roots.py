"""The kinds of root and the ways to fetch one, each booted to the end on a real image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.initrd.conftest import Booting, boot
from tests.initrd.gateway import Gateway, Version
from tests.lab import Lab, Pc
from tests.lab.nfs import Share
from tests.lab.recipe import ROOT_LOGIN

# Of root and home, and the way the root comes: which goes with which makes no difference to any, so three boots show all of them.
WAYS = (("symlink", "overlay", "nfs"), ("bind", "copy", "lazy"), ("overlay", "copy", "http"))
ROOT_KIB = 12 << 10  # of memory, for the root itself


def changed(plan: str, **values: str) -> str:
    lines = (line.partition("=") for line in plan.splitlines())
    return "".join(f"{key}={values.get(key, value)}\n" for key, _, value in lines)


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.build
@pytest.mark.root
@pytest.mark.parametrize(("kind", "home", "fetch"), WAYS)
def test_an_image_boots_on_each_kind_of_root_fetched_in_each_way(
    image: Version, tmp_path: Path, kind: str, home: str, fetch: str
) -> None:
    asked = replace(image, kind=kind, home_kind=home, fetch=fetch, check="read")
    with (
        Share(image.root.parent, tmp_path) as share,
        Gateway(replace(asked, share=share.url(image.root.name))) as gateway,
        Lab(gateway.port, network="user") as lab,
    ):
        pc = lab.pc("seat-7")
        boot(gateway, pc)
        pc.wait_for(ROOT_LOGIN, 240)
        assert gateway.troubles == []
        looks_right(pc, kind, home)
        whole = [path for path, _ in gateway.downloads if path.endswith(image.digests["root"])]
        assert bool(whole) == (fetch == "http")
        if fetch == "nfs":
            assert pc.sh("df --output=used /run/fleet/share | tail -1").strip() == "0"
        # The daemon has no server here; with one it is the lab's test.
        failed = pc.sh("systemctl --failed --plain --no-legend | cut -d' ' -f1", 60).split()
        assert set(failed) <= {"fleet-agent.service"}
        pc.console.send("systemctl poweroff\n")
        pc.wait_off(120)


def looks_right(pc: Pc, kind: str, home: str) -> None:
    root, usr = {
        "symlink": ("tmpfs", "symbolic link"),
        "bind": ("tmpfs", "directory"),
        "overlay": ("overlayfs", "directory"),
    }[kind]
    own = {"overlay": "overlayfs", "copy": "tmpfs"}[home]
    assert pc.sh("stat -f -c %T / /.ro /home/player") == f"{root}\nsquashfs\n{own}\n"
    # As the template has it, and nothing beside it is left of the making.
    same = "diff -r /run/fleet/home/template /home/player && stat -c %U /home/player && test ! -e /.home && echo tidy"
    assert pc.sh(same) == "player\ntidy\n"
    assert pc.sh("stat -c %F /usr") == f"{usr}\n"
    assert pc.sh("touch /etc/new /var/new /tmp/new && echo yes") == "yes\n"
    assert pc.sh("cmp /usr/bin/env /.ro/usr/bin/env && cmp /etc/passwd /.ro/etc/passwd && echo same") == "same\n"
    written = pc.sh("touch /usr/new 2>/dev/null && echo yes || echo no")
    assert written == ("yes\n" if kind == "overlay" else "no\n")
    assert pc.sh("test -e /.ro/usr/new || echo unharmed") == "unharmed\n"
    place = "/run/fleet/root" if kind == "overlay" else "/"
    assert 0 < int(pc.sh(f"df -k --output=used {place} | tail -1")) <= ROOT_KIB
    # pivot_root(2), and with it Flatpak, needs a root that is not the initramfs.
    assert "rootfs" not in pc.sh("findmnt -n -o FSTYPE /")


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.build
@pytest.mark.root
def test_a_kind_of_root_the_initrd_does_not_know_is_refused_by_name(booting: Booting) -> None:
    with booting() as (gateway, pc):
        gateway.plans = [changed(gateway.version.boot_plan(), kind="unionfs")]
        boot(gateway, pc)
        pc.wait_for("THIS PC CANNOT START: The boot plan asks for a root of the kind unionfs", 120)
        trouble = gateway.wait_for_trouble()
        assert (trouble["stage"], trouble["error"]) == ("plan", "other")
