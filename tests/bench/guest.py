"""Boots a virtual PC that counts instructions, and reads what it says of its boot."""

from __future__ import annotations

import re
import selectors
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.bench.report import progress

# Every instruction takes 1 ns of the guest's clock, and an idle guest jumps to its next timer: what the guest
# measures does not depend on the load of the host. Without the two CPU flags TCG runs the kernel's clear_page
# (rep stos) so slowly after a large initrd was freed that it would be held against those who have one.
MACHINE = [
    *("-M", "q35", "-accel", "tcg,thread=single", "-smp", "cpus=1"),
    *("-cpu", "max,erms=off,fsrm=off", "-m", "2048", "-rtc", "base=2026-01-01T00:00:00,clock=vm"),
    *("-nodefaults", "-vga", "cirrus", "-display", "none", "-serial", "stdio", "-no-reboot"),
]
# What becomes of the time in which the guest waits: skipped, or waited for. Skipped, a guest that waits for a server gets to its
# timers before the answer gets to it: right for boots that fetch in one go, not for those that read all the time.
Idle = Literal["skip", "wait"]
MAC = "52:54:00:be:9c:01"
HOST = "10.0.2.2"  # QEMU's user network: the guest's name for our loopback
CONSOLE = "console=ttyS0 quiet"  # the same for all: a chatty console costs
LIMIT_S = 900.0

_LINE = re.compile(r"BENCH busy_ticks=(\d+) idle_ticks=(\d+) uptime=([\d.]+) used_kib=(\d+) received=(\d+)")
_FILES = re.compile(r"^ *(\d+) (?:/|/run|/run/fleet/share|/run/fleet/root)\r?$", re.MULTILINE)
_USER_HZ = 100


class BootFailed(Exception):
    """The virtual PC did not get as far as its login prompt; the message has the end of its console."""


@dataclass(frozen=True)
class Boot:
    """What a virtual PC starts from: files, and the kernel's command line without the console."""

    kernel: Path
    initrd: Path
    append: str


@dataclass(frozen=True)
class Measured:
    """One boot up to the login prompt: guest seconds, bytes (kernel and initrd included), MiB of memory."""

    busy_s: float
    login_s: float
    bytes: int
    initrd_bytes: int
    ram_mib: float
    files_kib: int = 0  # in tmpfs file systems, without the home and those of the system; only our versions say it


def boot(name: str, start: Boot, log: Path, idle: Idle = "skip") -> Measured:
    """Boot until the guest has said what it measured and switched itself off; the console goes to `log`.

    Raises BootFailed when it ends otherwise, or not within 15 minutes.
    """
    argv = [
        "qemu-system-x86_64", *MACHINE, "-icount", f"shift=0,sleep={'off' if idle == 'skip' else 'on'}",
        "-netdev", "user,id=lan", "-device", f"virtio-net-pci,netdev=lan,mac={MAC},romfile=",
        "-kernel", str(start.kernel), "-initrd", str(start.initrd), "-append", f"{start.append} {CONSOLE}",
    ]  # fmt: skip
    console = _console(argv, log)
    found = _LINE.search(console)
    if not found:
        tail = "\n".join(console.splitlines()[-30:])
        raise BootFailed(f"{name} did not reach its login prompt; all of its console is in {log}:\n{tail}")
    busy, _idle, uptime, used, received = found.groups()
    return Measured(
        busy_s=int(busy) / _USER_HZ,
        login_s=float(uptime),
        bytes=int(received) + start.kernel.stat().st_size + start.initrd.stat().st_size,
        initrd_bytes=start.initrd.stat().st_size,
        ram_mib=int(used) / 1024,
        files_kib=sum(int(kib) for kib in _FILES.findall(console)),
    )


def _console(argv: list[str], log: Path) -> str:
    """Run QEMU to its end and return what came over the serial line."""
    log.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LIMIT_S
    said = time.monotonic()
    text = bytearray()
    with (
        log.open("wb") as file,
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as qemu,
        selectors.DefaultSelector() as selector,
    ):
        assert qemu.stdout is not None
        selector.register(qemu.stdout, selectors.EVENT_READ)
        try:
            while time.monotonic() < deadline:
                if time.monotonic() - said > 15:
                    said = time.monotonic()
                    progress(f"    … {text.decode(errors='replace').strip().rpartition(chr(10))[2][:90]}")
                if not selector.select(1):
                    continue
                chunk = qemu.stdout.read1(65536)  # type: ignore[attr-defined]
                if not chunk:
                    break
                text += chunk
                file.write(chunk)
                file.flush()
        finally:
            qemu.kill()
    return text.decode(errors="replace")
