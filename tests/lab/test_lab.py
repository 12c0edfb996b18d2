"""The lab itself: what it starts ends with it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab import Lab, LabError
from tests.services import wait_for

pytestmark = [pytest.mark.lab, pytest.mark.slow]

PROJECT = Path(__file__).resolve().parents[2]


def children_of(pid: int) -> set[int]:
    """All descendants of a process, dnsmasq and QEMU among them."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found |= {child} | children_of(child)
    return found


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists() and not is_zombie(pid)}


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def interfaces() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()}


def test_the_same_name_is_the_same_pc() -> None:
    with Lab(1, network="user") as lab:
        one, two = lab.pc("A1"), lab.pc("A2")
        assert one.mac != two.mac
        assert one.mac.startswith("52:54:00:")
    with Lab(1, network="user") as lab:
        again = lab.pc("A1")
        assert (again.mac, again.uuid, again.serial) == (one.mac, one.uuid, one.serial)


def test_an_unknown_adapter_is_named_with_those_there_are() -> None:
    with (
        Lab(1, network="user") as lab,
        pytest.raises(LabError, match=r"no graphics adapter 'voodoo'.*cirrus"),
    ):
        lab.pc(gpu="voodoo").boot()


@pytest.mark.root
def test_leaving_the_lab_leaves_nothing() -> None:
    before, links = children_of(os.getpid()), interfaces()
    with Lab(1) as lab:
        pc = lab.pc(memory_mib=128, cpus=1)
        pc.boot()
        assert pc.running
        started = children_of(os.getpid()) - before
        assert len(started) >= 2  # QEMU and dnsmasq
        directory = lab.directory
    assert alive(started) == set()
    assert interfaces() == links
    assert not directory.exists()


@pytest.mark.root
def test_a_killed_lab_leaves_no_process_and_no_network() -> None:
    program = (
        "import time\nfrom tests.lab import Lab\n"
        "with Lab(1) as lab:\n lab.pc(memory_mib=128, cpus=1).boot()\n"
        " print(lab.directory, flush=True)\n time.sleep(60)\n"
    )
    links = interfaces()
    with subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT, stdout=subprocess.PIPE) as lab:
        assert lab.stdout is not None
        directory = Path(lab.stdout.readline().decode().strip())
        assert directory.is_dir()
        started = children_of(lab.pid)
        assert len(started) >= 2
        lab.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while alive(started) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive(started) == set()
    assert interfaces() == links
    shutil.rmtree(directory)  # its logs: nobody was left to do it


PASSWORD = "de:ad:be:ef:00:01"


def magic(mac: str, password: str = "") -> bytes:
    return b"\xff" * 6 + bytes.fromhex(mac.replace(":", "")) * 16 + bytes.fromhex(password.replace(":", ""))


@pytest.mark.root
def test_a_pc_that_is_off_is_started_by_its_own_magic_packet_on_the_wire() -> None:
    with Lab(1) as lab:
        plain, locked, deaf = (
            lab.pc("plain", memory_mib=128, cpus=1),
            lab.pc("locked", memory_mib=128, cpus=1, secure_on=PASSWORD),
            lab.pc("deaf", memory_mib=128, cpus=1, wakes=False),
        )
        for packet in (magic(locked.mac), magic(locked.mac, "00:00:00:00:00:01"), magic(deaf.mac), magic(plain.mac)):
            lab.lan.send(packet, 9)
        wait_for(lambda: plain.running, "the PC is on")
        assert not locked.running, "without its password it sleeps on"
        assert not deaf.running
        lab.lan.send(magic(plain.mac), 9)
        lab.lan.send(magic(locked.mac, PASSWORD), 9)
        wait_for(lambda: locked.running, "the PC with the password is on")
        assert plain.running
