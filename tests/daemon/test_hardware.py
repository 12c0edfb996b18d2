"""What a client says of itself, from a sysfs as PCs have it."""

import os
import time
from pathlib import Path

import pytest

from agents.hands import hardware

PLAN = {"digest": "d" * 64, "class": "gamer"}


def device(root: Path, address: str, *ids: str) -> None:
    folder = root / "sys/bus/pci/devices" / address
    folder.mkdir(parents=True)
    for name, value in zip(("vendor", "device", "subsystem_vendor", "subsystem_device", "class"), ids, strict=True):
        (folder / name).write_text(value + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    device(tmp_path, "0000:01:00.0", "0x1002", "0x5046", "0x1AF4", "0x1100", "0x030000")
    device(tmp_path, "0000:00:02.0", "0x8086", "0x1912", "0x0000", "0x0000", "0x038000")
    device(tmp_path, "0000:00:03.0", "0x1af4", "0x1000", "0x1af4", "0x0001", "0x020000")
    files = {
        "proc/meminfo": "MemTotal:        1004212 kB\nMemFree:          712 kB\n",
        "proc/sys/kernel/osrelease": "6.1.0-56-amd64\n",
        "sys/class/dmi/id/product_name": "Standard PC (Q35)\n",
        "sys/class/dmi/id/product_serial": "\n",
        "run/fleet/boot": "kernel_ms=900\nnetwork_ms=2100\nrubbish\nplan_ms=x\n",
        "run/systemd/notify": "",
    }
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    return tmp_path


def test_display_adapters_are_listed_by_address_with_bare_small_ids(root: Path) -> None:
    assert hardware.adapters(str(root)) == [
        {
            "address": "0000:00:02.0",
            "vendor": "8086",
            "device": "1912",
            "subvendor": "0000",
            "subdevice": "0000",
            "class": "038000",
        },
        {
            "address": "0000:01:00.0",
            "vendor": "1002",
            "device": "5046",
            "subvendor": "1af4",
            "subdevice": "1100",
            "class": "030000",
        },
    ]


def test_facts_are_those_of_the_protocol(root: Path) -> None:
    facts = hardware.facts(PLAN, str(root))
    assert (facts["memory_kib"], facts["kernel"]) == (1004212, "6.1.0-56-amd64")
    assert (facts["product"], facts["serial"]) == ("Standard PC (Q35)", "")
    assert (facts["version_digest"], facts["class"]) == ("d" * 64, "gamer")
    assert facts["cpus"] == os.cpu_count()
    assert facts["clock_ms"] == pytest.approx(time.time() * 1000, abs=60_000)


def test_boot_times_are_the_initrds_then_systemds_then_the_daemons_in_uptime(root: Path) -> None:
    uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
    os.utime(root / "run/systemd/notify", (time.time() - 3, time.time() - 3))
    stages = hardware.boot_ms(str(root))
    assert (stages["kernel"], stages["network"]) == (900, 2100)
    assert "plan" not in stages
    assert stages["systemd"] == pytest.approx((uptime - 3) * 1000, abs=500)
    assert stages["daemon"] == pytest.approx(uptime * 1000, abs=500)


def test_a_pc_that_tells_nothing_has_facts_all_the_same(tmp_path: Path) -> None:
    facts = hardware.facts({}, str(tmp_path))
    assert facts["adapters"] == []
    assert facts["memory_kib"] == 0
    assert facts["product"] == ""


def test_the_facts_of_this_machine_can_be_read() -> None:
    assert int(str(hardware.facts(PLAN)["memory_kib"])) > 0
