"""A whole boot: firmware, DHCP, iPXE, the initrd, systemd on the symlink root of a real image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.initrd.gateway import Gateway, Version
from tests.lab import Lab
from tests.lab.recipe import ROOT_LOGIN

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.build, pytest.mark.root]


def test_a_pc_boots_from_the_network_into_its_image(image: Version, tmp_path: Path) -> None:
    with Gateway(image) as gateway, Lab(gateway.port) as lab:
        pc = lab.pc("seat-7", gpu=("cirrus", "ati"))
        pc.boot()
        # The firmware took 16 s for this before its router solicitation was answered.
        pc.wait_for("Linux version", 60)
        pc.wait_for(ROOT_LOGIN, 180)
        assert gateway.troubles == []
        assert [path for path, _ in gateway.downloads][:4] == [
            "/boot/v1/start.ipxe",
            "/boot/v1/client.ipxe",
            "/kernel",
            "/initrd",
        ]
        assert pc.sh("stat -f -c %T / /.ro /home/player") == "tmpfs\nsquashfs\noverlayfs\n"
        assert pc.sh("readlink /usr /bin") == "/.ro/usr\nusr/bin\n"
        assert pc.sh("hostname; cat /etc/machine-id").split() == [
            "seat-7",
            "0f8fad5bd9cb469fa16570867728950e",
        ]
        assert pc.sh("stat -c %a /run/fleet/plan") == "600\n"
        assert pc.sh("touch /etc/new /var/new /tmp/new && echo yes") == "yes\n"
        assert "yes" not in pc.sh("touch /usr/new 2>/dev/null && echo yes || true")
        # Units that fail are those of a root that is not as systemd wants it; the daemon has no server here.
        failed = pc.sh("systemctl --failed --plain --no-legend | cut -d' ' -f1").split()
        assert set(failed) <= {"fleet-agent.service"}
        pc.sh("until journalctl -u fleet-lease --no-pager | grep 'lease time'; do sleep 1; done", 60)
        pc.screenshot(tmp_path / "screen.png")
        assert (tmp_path / "screen.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        pc.console.send("systemctl poweroff\n")
        pc.wait_off(90)


def test_a_root_bent_where_nothing_was_read_is_found_once_the_pc_has_booted(image: Version) -> None:
    """Blocks are checked when they are read, and those that no boot reads soon after: then the PC goes no further."""
    version = replace(image, check="read")
    with Gateway(version) as gateway, Lab(gateway.port, network="user") as lab:
        pc = lab.pc("seat-7")
        gateway.spoil[version.digests["root"]] = ["middle"] * 2
        pc.boot(version.kernel, version.initrd, gateway.append(f"http://10.0.2.2:{gateway.port}", pc.mac))
        pc.wait_for(ROOT_LOGIN, 120)
        pc.wait_for("THIS PC CANNOT GO ON: The root of gamer-7 is damaged", 120)
        trouble = gateway.wait_for_trouble()
        assert (trouble["stage"], trouble["error"], trouble["mac"]) == ("verify", "digest-mismatch", pc.mac)
        assert trouble["detail"].startswith("The root of gamer-7 is damaged: a block has another hash")
        pc.wait_for("Linux version", 60)


def test_a_root_bent_where_the_boot_reads_ends_it_and_the_server_hears_of_it(image: Version) -> None:
    """What guards the boot was left by the initrd and needs nothing of the root."""
    version = replace(image, check="read")
    with Gateway(version) as gateway, Lab(gateway.port, network="user") as lab:
        pc = lab.pc("seat-7")
        gateway.spoil[version.digests["root"]] = ["bend"] * 2
        pc.boot(version.kernel, version.initrd, gateway.append(f"http://10.0.2.2:{gateway.port}", pc.mac))
        trouble = gateway.wait_for_trouble(timeout_s=300)
        assert (trouble["stage"], trouble["error"]) == ("verify", "digest-mismatch")
