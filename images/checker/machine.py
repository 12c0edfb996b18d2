"""The virtual PC a version is checked in: QEMU, with nothing of this host in reach but the checker's own server.

Its network is QEMU's user network, closed (`restrict=on`) except for one address that leads to that server: neither the host's
other services nor anything beyond it can be reached by what the image starts.
"""

import os
import pwd
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from fleet.exceptions import SiteError

MAC = "52:54:00:c4:ec:00"
SERVER = "10.0.2.100"  # what the guest calls the checker's server
ADDRESS = "fleet.ip=10.0.2.15 fleet.netmask=255.255.255.0 fleet.router=10.0.2.2 fleet.dns=10.0.2.3"
_TAIL = 2000  # characters of the console in an error


class Machine:
    """A PC that runs from entering to leaving the context; its files are in ``place``."""

    def __init__(
        self, place: Path, kernel: Path, initrd: Path, append: str, port: int, memory_mib: int, kvm: bool
    ) -> None:
        """``port`` is where the server listens on the loopback; ``kvm``: the processor runs the guest itself."""
        self._console = place / "console.log"
        self._log = place / "qemu.log"
        # Without its "fast" string instructions: the kernel would clear each page with one, byte by byte under TCG.
        accelerator = (
            ("-accel", "kvm", "-cpu", "host,-arch-capabilities")
            if kvm
            else ("-accel", "tcg,thread=multi", "-cpu", "max,erms=off,fsrm=off")
        )
        self._argv = [
            *("setpriv", "--pdeathsig", "KILL", *_as_nobody(), "--", _program(), "-name", "check"),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-M", "q35", *accelerator),
            *("-smp", str(min(os.cpu_count() or 1, 2)), "-m", str(memory_mib)),
            *("-netdev", f"user,id=net0,restrict=on,guestfwd=tcp:{SERVER}:80-cmd:{_forward(port)}"),
            *("-device", f"virtio-net-pci,netdev=net0,mac={MAC}", "-device", "virtio-rng-pci", "-device", "VGA"),
            *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console", "-append", append),
        ]
        self._boots = {"-kernel": kernel, "-initrd": initrd}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            console, log = (stack.enter_context(path.open("wb")) for path in (self._console, self._log))
            # By descriptor: who runs it may not enter the directories these are in.
            opened = {option: stack.enter_context(path.open("rb")).fileno() for option, path in self._boots.items()}
            boots = [word for option, number in opened.items() for word in (option, f"/dev/fd/{number}")]
            self._process = subprocess.Popen(
                [*self._argv, *boots],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=log,
                pass_fds=tuple(opened.values()),
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def running(self) -> bool:
        """QEMU ends when its guest powers off, and when it reboots."""
        return self._process.poll() is None

    def said(self) -> str:
        """The end of what the console said, or QEMU where there was none."""
        for path in (self._console, self._log):
            if path.exists() and (text := path.read_text(errors="replace").strip()):
                return "".join(char if char.isprintable() or char == "\n" else " " for char in text[-_TAIL:])
        return "It said nothing."


def has_kvm() -> bool:
    """Whether the kernel offers it. That a guest gets anywhere with it is another matter: in a virtual server it may not."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def _as_nobody() -> list[str]:
    """What a guest that breaks out would be: nobody, with no more than the use of KVM. (Only root can change into one.)"""
    if os.geteuid() != 0:
        return []
    nobody = pwd.getpwnam("nobody")
    groups = ["--groups", str(Path("/dev/kvm").stat().st_gid)] if has_kvm() else ["--clear-groups"]
    return [*("--reuid", str(nobody.pw_uid), "--regid", str(nobody.pw_gid)), *groups, "--no-new-privs"]


def _program() -> str:
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        raise SiteError(
            "There is no virtual PC on this server: qemu-system-x86_64 is missing.",
            hint="Install the Debian package qemu-system-x86.",
        )
    return program


def _forward(port: int) -> str:
    """The command that QEMU starts for each connection of the guest: it is the connection's other end."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise SiteError("The virtual PC has no way to its server: busybox is missing.", hint="Install busybox-static.")
    return f"{busybox} nc 127.0.0.1 {port}"
