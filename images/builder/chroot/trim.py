"""What a diskless client can do without, and what would make two builds of one recipe differ.

Nothing a user could ask for goes away: manuals, locales and every program stay. What goes is work at boot
that has no meaning without a disk, and traces of the build.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from images.builder.chroot import inside

# They look after a disk, a package database or a first boot; on a client each is forgotten at power-off.
# Some cost more than themselves: systemd-repart pulls in two modprobes, the mount of configfs (for targets and
# gadgets, which a client never is) a third.
UNITS = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
    "e2scrub_reap.service", "fstrim.timer", "man-db.timer", "systemd-firstboot.service",
    "systemd-journal-flush.service", "systemd-pstore.service", "systemd-random-seed.service",
    "systemd-remount-fs.service", "systemd-repart.service", "systemd-update-utmp-runlevel.service",
    "sys-kernel-config.mount",
    # For developers of kernels; and what a graphics driver or FUSE loads by itself when somebody needs it.
    "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "dev-hugepages.mount", "sys-fs-fuse-connections.mount",
    "modprobe@drm.service",
    # The journal hears from systemd itself what audit would tell it once more; nobody asks a client when it booted.
    "systemd-journald-audit.socket", "systemd-update-utmp.service",
    "systemd-binfmt.service",  # comes later, see _COLDPLUG_REST
)  # fmt: skip

# Generator → the file that gives it work; "" is for those that only ever look at disks, boot loaders and the kernel's command line.
# Each costs a process before the first unit starts.
GENERATORS = {
    "systemd-bless-boot-generator": "",
    "systemd-cryptsetup-generator": "/etc/crypttab",
    "systemd-fstab-generator": "/etc/fstab",
    "systemd-gpt-auto-generator": "",
    "systemd-hibernate-resume-generator": "",
    "systemd-integritysetup-generator": "/etc/integritytab",
    "systemd-rc-local-generator": "/etc/rc.local",
    "systemd-run-generator": "",  # systemd.run= on the kernel's command line, which is ours
    "systemd-system-update-generator": "",
    "systemd-veritysetup-generator": "/etc/veritytab",
}

# PEP 552, the second word of a .pyc.
_CHECKED_HASH = (0b11).to_bytes(4, "little")
_UNCHECKED_HASH = (0b01).to_bytes(4, "little")

# At boot udev is told of every device, and loads a driver for each, before anybody can log in. A client's login needs
# serial consoles and keyboards, and a graphical one the graphics adapter; sound, sensors, disks and the rest come a moment later.
_COLDPLUG_FIRST = (
    "--subsystem-match=tty --sysname-match=ttyS* --sysname-match=hvc*",
    "--subsystem-match=pci --attr-match=class=0x0c03*",  # USB controllers, and so keyboards
)
_COLDPLUG_GRAPHICAL = "--subsystem-match=pci --attr-match=class=0x03*"
_COLDPLUG_REST = """\
[Unit]
Description=Drivers of the devices, and formats of programs, that no login waits for
After=getty.target

[Service]
# Not oneshot: gettys (Type=idle) would wait for its end. Without terminals: udev sets the times of a node it meets again,
# which would look as if somebody had typed there.
ExecStart=/bin/sh -c 'sleep 1; udevadm trigger --type=subsystems --action=add; \\
    udevadm trigger --action=add --subsystem-nomatch=tty; \\
    [ ! -x /usr/lib/systemd/systemd-binfmt ] || exec /usr/lib/systemd/systemd-binfmt'
"""

_JOURNAL = "[Journal]\nStorage=volatile\nRuntimeMaxUse=32M\n"

# Emptied below, kept themselves. /dev, /proc, /run and /sys are mounted over.
EMPTIED = (
    "dev", "proc", "run", "sys", "tmp", "var/tmp", "var/cache/apt", "var/cache/ldconfig", "var/lib/apt/lists",
    "var/log/apt",
)  # fmt: skip
REMOVED = (
    "etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/subuid-", "etc/subgid-", "etc/.pwd.lock",
    "etc/apt/apt.conf.d/99mmdebstrap", "initrd.img", "initrd.img.old", "vmlinuz", "vmlinuz.old",
    "var/cache/debconf/config.dat-old", "var/cache/debconf/templates.dat-old",
    "var/lib/dbus/machine-id", "var/lib/dpkg/available-old", "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/status-old", "var/lib/dpkg/statoverride-old", "var/lib/dpkg/lock",
    "var/lib/dpkg/lock-frontend", "var/lib/dpkg/triggers/Lock", "var/lib/systemd/random-seed",
    "var/log/bootstrap.log", "var/log/dpkg.log", "var/log/alternatives.log",
)  # fmt: skip


def trim(tree: Path, epoch: int) -> None:
    """Trim the tree, a new one or one that was trimmed before; all times after `epoch` (s) are set back to it by squashfs and cpio, not here."""
    for unit in UNITS:
        _mask(tree, f"/etc/systemd/system/{unit}")
    for generator, work in GENERATORS.items():
        if not (work and _has_lines(inside.locate(tree, work))):
            _mask(tree, f"/etc/systemd/system-generators/{generator}")
    inside.write(tree, "/etc/systemd/journald.conf.d/stateless.conf", _JOURNAL)
    _split_coldplug(tree)
    for name in EMPTIED:
        _empty(inside.locate(tree, f"/{name}"))
    for name in REMOVED:
        (tree / name).unlink(missing_ok=True)
    shutil.rmtree(tree / "var/log/journal", ignore_errors=True)  # its ACLs fit into no squashfs
    for log in _files(tree / "var/log"):
        os.truncate(log, 0)
    # Empty, not missing: systemd then makes an id of its own at boot without taking it for a first boot,
    # which would enable and disable units by preset (machine-id(5)).
    inside.write(tree, "/etc/machine-id", "", 0o444)
    if (tree / "var/lib/dbus").is_dir():
        _link(tree / "var/lib/dbus/machine-id", "/etc/machine-id")
    # The initrd writes it anew; a link to a resolver's /run would make that write go nowhere.
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
    inside.write(tree, "/etc/resolv.conf", "")
    _trust_compiled(tree / "usr")
    _stamp(tree, epoch)


def youngest_shipped(tree: Path, started: float) -> int:
    """The time (s) of the youngest file a package brought: the same for the same packages, whenever built.

    Packages keep the times of their files, all others were made after the build `started`.
    """
    times = (os.lstat(f"{top}/{name}").st_mtime for top, _, names in os.walk(tree) for name in names)
    return int(max((time for time in times if time < started), default=0))


def _split_coldplug(tree: Path) -> None:
    """Have udev load first what a login needs, and the rest when the login is there."""
    systemd = "/etc/systemd/system"
    graphical = os.path.lexists(tree / "etc/systemd/system/display-manager.service")
    first = [*_COLDPLUG_FIRST, *([_COLDPLUG_GRAPHICAL] if graphical else [])]
    lines = ["[Service]", "ExecStart=", *(f"ExecStart=-udevadm trigger --action=add {match}" for match in first)]
    inside.write(tree, f"{systemd}/systemd-udev-trigger.service.d/stateless.conf", "\n".join(lines) + "\n")
    inside.write(tree, f"{systemd}/coldplug-rest.service", _COLDPLUG_REST)
    wants = inside.locate(tree, f"{systemd}/multi-user.target.wants")
    wants.mkdir(parents=True, exist_ok=True)
    _link(wants / "coldplug-rest.service", "../coldplug-rest.service")


def _trust_compiled(usr: Path) -> None:
    """Have Python load what packages compiled without reading the source too.

    Under SOURCE_DATE_EPOCH, py_compile makes .pyc files that hold the hash of the source and have it checked
    at every import (PEP 552). The share is read-only, so no source changes; one changed by a hook stays so.
    """
    for path in usr.rglob("__pycache__/*.pyc"):
        with path.open("r+b") as compiled:
            compiled.seek(4)
            flags = compiled.read(4)
            source = path.parent.parent / f"{path.name.partition('.')[0]}.py"
            if (
                flags == _CHECKED_HASH
                and source.is_file()
                and source.stat().st_mtime <= os.fstat(compiled.fileno()).st_mtime
            ):
                compiled.seek(4)
                compiled.write(_UNCHECKED_HASH)


def _stamp(tree: Path, epoch: int) -> None:
    """Say that nothing is newer in /usr than in /etc and /var (systemd.unit(5), ConditionNeedsUpdate).

    Otherwise ldconfig, the hwdb, the journal's catalogue and sysusers would be made anew at every boot.
    """
    for name in ("etc/.updated", "var/.updated"):
        (tree / name).write_text("")
        os.utime(tree / name, (epoch, epoch))
    os.utime(tree / "usr", (epoch, epoch))


def _mask(tree: Path, path: str) -> None:
    target = inside.locate(tree, os.path.dirname(path)) / os.path.basename(path)  # noqa: PTH119, PTH120
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists() and not target.is_symlink():
        target.symlink_to("/dev/null")


def _link(link: Path, target: str) -> None:
    """Also where one is: a derived version's tree was trimmed before."""
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def _has_lines(path: Path) -> bool:
    """Whether a configuration file says anything."""
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return any(line.strip() and not line.lstrip().startswith("#") for line in lines)


def _empty(directory: Path) -> None:
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _files(directory: Path) -> Iterator[Path]:
    """Regular files below, links not followed."""
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path
