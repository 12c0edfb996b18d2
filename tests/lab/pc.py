"""One virtual PC: QEMU without hardware acceleration, on the lab's network."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tests.lab.console import Console
from tests.lab.process import LabError, end
from tests.lab.qmp import Qmp

# Graphics adapters by their real PCI ids; as the first one in the PC, and as one beside another.
GPUS = {
    "cirrus": ("cirrus-vga", "cirrus-vga"),  # 1013:00b8
    "ati": ("ati-vga", "ati-vga"),  # 1002:5046
    "radeon": ("ati-vga,model=rv100", "ati-vga,model=rv100"),  # 1002:5159
    "std": ("VGA", "secondary-vga"),  # 1234:1111
    "vmware": ("vmware-svga", "vmware-svga"),  # 15ad:0405
    "qxl": ("qxl-vga", "qxl"),  # 1b36:0100
    "virtio": ("virtio-vga", "virtio-gpu-pci"),  # 1af4:1050
}


class Network(Protocol):
    """What a PC needs of the lab: its network card's other end, and how to start a process there."""

    def netdev(self, name: str) -> str:
        """QEMU's `-netdev` for the PC `name`, with the id `net0`."""

    def start(self, argv: list[str], log: Path) -> subprocess.Popen[bytes]: ...


class Pc:
    """A PC that is off until `boot()`, or until its magic packet comes. MAC, UUID and serial number follow from its name.

    `wakes`: whether its network card does that; `secure_on`: the password it wants for it, as in 00:11:22:33:44:55.
    """

    wakes = True
    secure_on = ""

    def __init__(
        self,
        name: str,
        network: Network,
        directory: Path,
        sockets: Path,
        *,
        gpu: str | Sequence[str] = "std",
        memory_mib: int = 1024,
        cpus: int = 2,
        extra: Sequence[str] = (),
    ) -> None:
        """Logs go to `directory`. `sockets` is a short path: a Unix socket's name has room for 107 bytes only.

        `gpu`: a key of GPUS, or several, the first shows the screen. `extra` goes to QEMU as it is."""
        digest = hashlib.sha256(name.encode()).digest()
        self.name = name
        self.mac = "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])
        self.uuid = str(uuid.UUID(bytes=digest[:16], version=4))
        self.serial = f"LAB-{digest[:4].hex().upper()}"
        self.gpus = (gpu,) if isinstance(gpu, str) else tuple(gpu)
        self.directory, self._sockets = directory, sockets
        self._network = network
        self._netdev = network.netdev(name)
        self._memory_mib = memory_mib
        self._cpus = cpus
        self._extra = tuple(extra)
        self._process: subprocess.Popen[bytes] | None = None
        self._qmp: Qmp | None = None
        self._console: Console | None = None
        self._ended_cpu_s = 0.0

    def boot(self, kernel: Path | None = None, initrd: Path | None = None, append: str = "") -> None:
        """Switch it on: from the network as its firmware does, or straight into `kernel`."""
        if self.running:
            raise LabError(f"{self.name} is on already.")
        self._forget()
        if self._console is not None:
            self._console.close()
        argv = self._argv()
        if kernel is None:
            argv += ["-boot", "n"]
        else:
            argv += ["-kernel", str(kernel), "-append", append]
            argv += ["-initrd", str(initrd)] if initrd else []
        self._process = self._network.start(argv, self.directory / "qemu.log")
        try:
            self._console = Console(self._path("serial"), self.directory / "serial.log", lambda: self.running)
            self._qmp = Qmp(self._path("qmp"))
        except LabError as error:
            self.power_off_hard()
            said = (self.directory / "qemu.log").read_text(errors="replace").strip()
            raise LabError(f"{self.name} does not start: {said or error}") from error

    @property
    def running(self) -> bool:
        """QEMU ends when its guest powers off, and goes on when it reboots."""
        return self._process is not None and self._process.poll() is None

    @property
    def console(self) -> Console:
        if self._console is None:
            raise LabError(f"{self.name} was never switched on.")
        return self._console

    @property
    def text(self) -> str:
        """What the serial console said since the last boot()."""
        return self.console.text

    def wait_for(self, pattern: str, timeout_s: float) -> re.Match[str]:
        """Wait until the serial console says it, see Console.wait_for."""
        return self.console.wait_for(pattern, timeout_s)

    def wait_off(self, timeout_s: float) -> None:
        """Wait until the guest has powered itself off."""
        deadline = time.monotonic() + timeout_s
        while self.running:
            if time.monotonic() > deadline:
                raise LabError(f"{self.name} is still on after {timeout_s:g} s.")
            time.sleep(0.1)

    def sh(self, command: str, timeout_s: float = 60.0) -> str:
        """Output of a command in the root shell on the serial console; LabError when it fails."""
        exit_code, output = self.console.sh(command, timeout_s)
        if exit_code:
            raise LabError(f"{self.name}: {command} ended with {exit_code}: {output}")
        return output

    def screenshot(self, path: Path) -> Path:
        """A PNG of the first screen."""
        self.qmp.execute("screendump", filename=str(path.resolve()), format="png")
        return path

    def enter(self, line: str, timeout_s: float = 60.0) -> None:
        """Type a line on the PC's own keyboard, look whether its first console shows it, and press Enter.

        A guest that stands still for a moment loses keys. Needs the root shell on the serial console.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self.qmp.type(line)
            for _ in range(10):
                seen = self.sh("cat /dev/vcs1").rstrip()
                if seen.endswith(line):
                    self.press("ret")
                    return
                time.sleep(0.2)
            if time.monotonic() > deadline:
                raise LabError(f"{self.name}: {line!r} was typed again and again; its screen ends with {seen[-400:]!r}")
            self.press("ctrl", "u")

    def press(self, *keys: str) -> None:
        """Press keys together: `pc.press("ctrl", "alt", "f2")`."""
        self.qmp.press(*keys)

    def unplug(self) -> None:
        """Pull its network cable; the guest sees the link go down."""
        self.qmp.execute("set_link", name="net0", up=False)

    def plug(self) -> None:
        self.qmp.execute("set_link", name="net0", up=True)

    def power_button(self) -> None:
        """Press it (ACPI)."""
        self.qmp.execute("system_powerdown")

    def reset(self) -> None:
        """Press the reset button."""
        self.qmp.execute("system_reset")

    def power_off_hard(self) -> None:
        """Pull the plug."""
        if self._process is not None:
            self._count()
            self._process.kill()
            self._process.wait()
        self._forget()

    @property
    def cpu_s(self) -> float:
        """CPU seconds the running PC has used on this host."""
        if self._process is None:
            raise LabError(f"{self.name} was never switched on.")
        return self._count()

    @property
    def qmp(self) -> Qmp:
        if self._qmp is None:
            raise LabError(f"{self.name} is off.")
        return self._qmp

    def close(self) -> None:
        if self._process is not None:
            end(self._process)
        self._forget()
        if self._console is not None:
            self._console.close()

    def _count(self) -> float:
        assert self._process is not None
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            return self._ended_cpu_s
        self._ended_cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return self._ended_cpu_s

    def _forget(self) -> None:
        """Close what belonged to the last run; its console text stays readable."""
        if self._qmp is not None:
            self._qmp.close()
            self._qmp = None
        for name in ("serial", "qmp"):
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._sockets / f"{self.name}.{name}"

    def _argv(self) -> list[str]:
        # Without its "fast" string instructions: the kernel would clear each page with one, byte by byte under TCG.
        argv = [
            *("qemu-system-x86_64", "-name", self.name, "-nodefaults", "-no-user-config", "-display", "none"),
            *("-accel", "tcg,thread=multi", "-cpu", "max,erms=off,fsrm=off", "-M", "q35"),
            *("-smp", str(self._cpus), "-m", str(self._memory_mib), "-uuid", self.uuid),
            *("-smbios", f"type=1,manufacturer=Fleet Lab,product=Virtual PC,serial={self.serial}"),
            *("-netdev", self._netdev, "-device", f"virtio-net-pci,netdev=net0,mac={self.mac}"),
            *("-device", "virtio-rng-pci"),
            *("-chardev", f"socket,id=serial,path={self._path('serial')},server=on,wait=off"),
            *("-serial", "chardev:serial"),
            *("-qmp", f"unix:{self._path('qmp')},server=on,wait=off"),
        ]
        for index, gpu in enumerate(self.gpus):
            if gpu not in GPUS:
                raise LabError(f"{self.name}: no graphics adapter {gpu!r}; there are {', '.join(GPUS)}.")
            argv += ["-device", GPUS[gpu][min(index, 1)]]
        return [*argv, *self._extra]
