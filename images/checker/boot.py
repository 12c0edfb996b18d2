"""One boot of a version under the kernel's eyes: the version's own kernel, initrd and root, as a client gets them.

The check is no part of any initrd: a second archive goes before the version's own (the kernel unpacks one after the other) and
is started in its place (`rdinit=`). So versions of all ages can be checked, and no client of a site can be made to report.
"""

import base64
import logging
import tempfile
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from images.builder.cpio import Archive
from images.builder.errors import BuildError
from images.builder.initrd import KERNEL_WORDS
from images.checker import machine
from images.checker.machine import Machine
from images.checker.probes import probes
from images.checker.server import PARTS, Server

log = logging.getLogger(__name__)

GUEST = Path(__file__).parent / "guest"
PATIENCE_S = 900  # for one boot; without KVM a small system needs one minute, a large desktop five
SETTLE_S = 20  # after the system is up: what a session's start writes
_CHECK = "fleet/agent/check"
_UNITS = "fleet/agent/units"  # images/initrd/handover.sh gives these to systemd
_BASE_MIB = 1024
_STALLED_S = 30  # a client asks for its boot plan within four seconds of KVM
_MOST_TRACE = 128 << 20  # bytes, unpacked


class CannotCheck(BuildError):
    """The version did not come as far as its report; the text says how far it came."""


@dataclass(frozen=True)
class Subject:
    """What is booted. ``plan``: lines of the boot plan that say which version and how (images/bootplan.py)."""

    name: str
    kernel: Path
    initrd: Path
    plan: Mapping[str, object]
    artefacts: Mapping[str, Path]  # root, plan and home by their digests


@dataclass(frozen=True)
class Report:
    """What the PC sent, as text; ``missing`` are the probes its kernel does not have ("all": it cannot trace)."""

    state: str
    missing: tuple[str, ...]
    trace: str
    units: str
    journal: str


def boot(subject: Subject, patience_s: float = PATIENCE_S, settle_s: float = SETTLE_S, kvm: bool = False) -> Report:
    """Boot it and wait for its report. Raises CannotCheck, and SiteError where this server has no QEMU.

    With ``kvm`` the processor runs the guest itself, if a guest gets anywhere with it here; it is five times as fast.
    """
    plan = {
        "protocol": 1,
        "action": "boot",
        "session": "00000000-0000-4000-8000-000000000000",
        "bearer": "0" * 64,
        "client": "c4ec0000-0000-4000-8000-000000000000",
        "name": "check",
        "class": "check",
        "check": "read",
        "kind": "symlink",
        "fetch": "http",
        "tmpfs_percent": 50,
        "home_percent": 50,
        "home_kind": "overlay",
        **subject.plan,
    }
    with (
        tempfile.TemporaryDirectory(prefix="fleet-check-") as directory,
        Server(plan, subject.artefacts) as server,
    ):
        place = Path(directory)
        base = f"http://{machine.SERVER}"
        settings = {
            "server": f"{base}/check/v1/{server.token}",
            "patience_s": int(patience_s / 2),
            "settle_s": int(settle_s),
            "user": subject.plan["user"],
        }
        _initrd(subject.initrd, place / "initrd", settings)
        words = (
            f"console=tty0 console=ttyS0 {KERNEL_WORDS} rdinit=/{_CHECK}/trace fleet.server={base} "
            f"fleet.mac={machine.MAC} fleet.token={server.token} fleet.keys={server.keys} {machine.ADDRESS}"
        )
        size = sum(path.stat().st_size for path in subject.artefacts.values())
        memory_mib = _BASE_MIB + size * 3 // 2 // (1 << 20)
        for accelerated in [True, False] if kvm else [False]:
            with Machine(place, subject.kernel, place / "initrd", words, server.port, memory_mib, accelerated) as pc:
                if accelerated and not server.asked.wait(_STALLED_S):
                    log.warning(
                        "KVM stalls on this server, %s is checked without it (FLEET_CHECK_KVM=no).", subject.name
                    )
                    continue
                _wait(subject, server, pc, patience_s)
                break
        return _read(server.report)


def _wait(subject: Subject, server: Server, pc: Machine, patience_s: float) -> None:
    """Until the report is there. Raises CannotCheck."""
    deadline = time.monotonic() + patience_s
    while not server.over.wait(0.5):
        if pc.running and time.monotonic() < deadline:
            continue
        what = f"sent no report within {patience_s:.0f} s" if pc.running else "switched itself off or broke down"
        if not server.over.is_set():
            raise CannotCheck(f"{subject.name} {what}. Look at what it said last, and whether it boots.\n{pc.said()}")
    if server.trouble:
        raise CannotCheck(f"{subject.name} does not boot: {server.trouble}")


def _read(parts: Mapping[str, bytes]) -> Report:
    if gone := [part for part in PARTS if part not in parts]:
        raise CannotCheck(f"The report came without its {', '.join(gone)}. Check once more.")
    text = {part: parts[part].decode(errors="replace") for part in PARTS if part != "trace"}
    try:
        unpacking = zlib.decompressobj(zlib.MAX_WBITS | 16)
        trace = unpacking.decompress(base64.b64decode(parts["trace"]), _MOST_TRACE)
    except (zlib.error, ValueError) as error:
        raise CannotCheck(f"The kernel's notes came damaged: {error}. Check once more.") from error
    return Report(
        state=text["state"].strip(),
        missing=tuple(text["missing"].split()),
        trace=trace.decode(errors="replace"),
        units=text["units"],
        journal=text["journal"],
    )


def _initrd(own: Path, output: Path, settings: Mapping[str, object]) -> None:
    """The version's initrd with the check before it."""
    with output.open("wb") as stream:
        with Archive(stream) as archive:
            parts = _CHECK.split("/")
            for depth in range(1, len(parts) + 1):
                archive.directory("/".join(parts[:depth]))
            archive.file(f"{_CHECK}/trace", GUEST / "trace", 0o755)
            archive.file(f"{_CHECK}/report", GUEST / "report")
            archive.file(f"{_CHECK}/probes", probes().encode())
            lines = "".join(f"{key}='{value}'\n" for key, value in settings.items())
            archive.file(f"{_CHECK}/settings", lines.encode(), 0o600)
            for name in ("", "/multi-user.target.wants", "/fleet-agent.service.d"):
                archive.directory(f"{_UNITS}{name}")
            archive.file(f"{_UNITS}/fleet-check.service", GUEST / "fleet-check.service")
            archive.symlink(f"{_UNITS}/multi-user.target.wants/fleet-check.service", "../fleet-check.service")
            archive.file(f"{_UNITS}/fleet-agent.service.d/check.conf", GUEST / "fleet-agent.conf")
        stream.write(b"\0" * (-stream.tell() % 512))
        with own.open("rb") as source:
            while block := source.read(1 << 20):
                stream.write(block)
    output.chmod(0o644)  # in a directory that only the checker enters; QEMU runs as nobody
