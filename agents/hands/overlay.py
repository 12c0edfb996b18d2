"""The home as an overlay: the template's squashfs below, a tmpfs of its own above, so that a restore is two mounts.

Or as a copy of the template in that tmpfs, for programs that do not like an overlay: a restore then costs what copying costs.
mount(2) and umount2(2) are called by way of libc: a fork of mount(8) costs more than the restore itself.
"""

from __future__ import annotations

import ctypes
import os
import re
import stat
import subprocess
from collections.abc import Callable

from .home import attributes, entries, file_digest, tree_digest

BASE = "/run/fleet/home"
UPPER = BASE + "/upper"
NEXT, NEXT_UPPER = BASE + "/next", BASE + "/next-upper"
OVERLAY, COPY = "overlay", "copy"
NOSUID, NODEV, BIND = 0x2, 0x4, 0x1000
PAGE = 4096
DETACH = 0x2  # umount2(2): out of sight at once, gone when the last user lets go

libc = ctypes.CDLL(None, use_errno=True)


def mount(kind: str, target: str, options: str) -> None:
    flags = ctypes.c_ulong(NOSUID | NODEV)
    if libc.mount(kind.encode(), os.fsencode(target), kind.encode(), flags, os.fsencode(options)):
        raise OSError(ctypes.get_errno(), f"mount {kind}: {os.strerror(ctypes.get_errno())}", target)


def bind(source: str, target: str) -> None:
    """Show `source`, with the flags of its mount, at `target` too."""
    if libc.mount(os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(BIND), None):
        raise OSError(ctypes.get_errno(), f"bind: {os.strerror(ctypes.get_errno())}", target)


def detach(target: str) -> None:
    """Take every mount off `target`, with all below it; none there is as good."""
    while os.path.ismount(target):
        if libc.umount2(os.fsencode(target), DETACH):
            raise OSError(ctypes.get_errno(), f"umount: {os.strerror(ctypes.get_errno())}", target)


def mounts() -> list[tuple[str, str]]:
    """(mount point, options of its file system), oldest first; proc(5), mountinfo."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        halves = [line.rstrip("\n").partition(" - ")[::2] for line in lines]
    return [
        (re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), left.split(" ")[4]), right)
        for left, right in halves
    ]


class Home:
    """The home at `path`. `boot_template` is the SHA-256 of the squashfs that the initrd mounted; `kind` is OVERLAY or COPY."""

    def __init__(self, path: str, boot_template: str, percent: str, kind: str = OVERLAY) -> None:
        if kind not in (OVERLAY, COPY):
            raise ValueError(f"home_kind is {kind!r}; it must be {OVERLAY} or {COPY}.")
        self.path, self.boot_template, self.percent, self.kind = path, boot_template, percent, kind
        self.template, self.contents, self.digest = "", dict[bytes, str](), ""

    def place(self, template: str) -> tuple[str, str]:
        """(mount point, file) of a template."""
        if template == self.boot_template:
            return f"{BASE}/template", "/run/fleet/home.squashfs"
        return f"{BASE}/{template}", f"{BASE}/{template}.squashfs"

    def prepare(self, template: str, size: int, fetch: Callable[[str, int, str], None]) -> None:
        """Have the template mounted, and it and each of its files measured (`digest`, `contents`); all only once."""
        if template == self.template:
            return
        point, file = self.place(template)
        if not os.path.exists(file):
            fetch(template, size, file)
        if file_digest(file) != template:
            raise OSError(f"{file} is not the template {template}.")
        if not os.path.ismount(point):
            os.makedirs(point, mode=0o700, exist_ok=True)
            subprocess.run(["mount", "-t", "squashfs", "-o", "ro,loop,nosuid,nodev", file, point], check=True)
        tree = os.fsencode(point)
        paths = [(path, os.path.join(tree, path)) for path in entries(tree)]
        if self.kind == COPY:
            self.require_room([os.lstat(full).st_size for _, full in paths])
        self.contents = {path: file_digest(full) for path, full in paths if stat.S_ISREG(os.lstat(full).st_mode)}
        self.template, self.digest = template, tree_digest(point, self.contents)

    def require_room(self, sizes: list[int]) -> None:
        """Refuse a template of which a copy has no room, as long as there is a home still."""
        needed = sum(-(-size // PAGE) * PAGE for size in sizes)
        room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * int(self.percent) // 100
        if needed > room:
            raise OSError(f"a copy of the template takes {needed >> 20} MiB, and the home has {room >> 20}")

    def restore(self) -> None:
        """Mount a home that has only the template in it, aside: NEXT, with its layer in NEXT_UPPER."""
        point, _ = self.place(self.template)
        upper, work = f"{NEXT_UPPER}/upper", f"{NEXT_UPPER}/work"
        for place in (NEXT, NEXT_UPPER, UPPER):
            os.makedirs(place, mode=0o700, exist_ok=True)
        detach(NEXT)  # of a restore that was interrupted
        detach(NEXT_UPPER)
        mount("tmpfs", NEXT_UPPER, f"size={self.percent}%,mode=0700")
        os.mkdir(upper)
        if self.kind == COPY:
            subprocess.run(["cp", "-a", f"{point}/.", upper], check=True)
            bind(upper, NEXT)
            return
        os.mkdir(work)
        root = os.stat(point)  # overlayfs shows the attributes of the upper root, not those of the lower one
        os.chown(upper, root.st_uid, root.st_gid)
        os.chmod(upper, stat.S_IMODE(root.st_mode))
        for name in attributes(point):
            os.setxattr(upper, name, os.getxattr(point, name))
        mount("overlay", NEXT, f"lowerdir={point},upperdir={upper},workdir={work}")

    def swap(self) -> list[int]:
        """Put the restored home in the place of the old one, whose descriptors (all of it, its upper layer) keep it readable.

        The old home goes in one system call, and the new one comes in the next: whoever is killed here left one of them.
        """
        kept = []
        if os.path.ismount(self.path) and os.path.ismount(UPPER):
            kept = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (self.path, f"{UPPER}/upper")]
        detach(self.path)
        bind(NEXT, self.path)
        detach(NEXT)
        detach(UPPER)
        bind(NEXT_UPPER, UPPER)
        detach(NEXT_UPPER)
        return kept

    def measure(self) -> str:
        """Tree digest of the home that was restored and is aside still.

        All of its entries are read, but the contents of files taken from `prepare`: they can come from nowhere but
        the read-only template while the upper layer is empty. Where it is not, as in a copy, contents are read too.
        """
        untouched = not os.listdir(f"{NEXT_UPPER}/upper")
        return tree_digest(NEXT, self.contents if untouched else None)

    def forget_others(self) -> None:
        """Unmount templates that no home uses any more, and remove their files."""
        point, _ = self.place(self.template)
        for other, _ in mounts():
            if os.path.dirname(other) == BASE and other not in (point, UPPER):
                detach(other)
                file = "/run/fleet/home.squashfs" if other.endswith("/template") else other + ".squashfs"
                if os.path.exists(file):
                    os.unlink(file)
