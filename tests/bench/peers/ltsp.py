"""LTSP: the squashfs stays on the server, the client mounts it over NFS and reads what it needs."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.guest import HOST, MAC
from tests.bench.peers.tree import System

# ltsp.img is LTSP's own code for the clients. It goes before the distribution's initrd, which the kernel's
# unpacker wants at a multiple of four bytes (Documentation/driver-api/early-userspace/buffer-format.rst).
SYSTEM = System(
    "ltsp",
    ("ltsp", "initramfs-tools", "busybox", "cpio"),
    """
mkdir -p "$1/etc/ssh" && : >"$1/etc/ssh/ssh_host_none_key.pub"
chroot "$1" ltsp initrd
rm "$1/etc/ssh/ssh_host_none_key.pub"
truncate --size=%4 "$1/srv/tftp/ltsp/ltsp.img"
cat "$1/srv/tftp/ltsp/ltsp.img" "$1"/boot/initrd.img-* >"$2/initrd"
rm -r "$1/srv/tftp"
""",
)
_READY_S = 60.0

_GANESHA = """
NFS_CORE_PARAM {{ Protocols = 3; NFS_Port = 2049; MNT_Port = 20048;
    mount_path_pseudo = true; Enable_NLM = false; Enable_RQUOTA = false; }}
NFS_KRB5 {{ Active_krb5 = false; }}
EXPORT {{ Export_Id = 1; Path = {share}; Pseudo = /srv/ltsp; Protocols = 3; Access_Type = RO;
    Squash = None; SecType = sys; Transports = TCP; FSAL {{ Name = VFS; }} }}
LOG {{ Default_Log_Level = EVENT; }}
"""


def append() -> str:
    """The kernel command line, as ltsp.ipxe writes it."""
    return (
        f"root=/dev/nfs nfsroot={HOST}:/srv/ltsp"
        f" ltsp.image=images/root.img loop.max_part=9 BOOTIF=01-{MAC.replace(':', '-')}"
    )


@contextmanager
def nfs_server(share: Path, work: Path) -> Iterator[None]:
    """A user-space NFS server of the directory `share`, on the loopback of a namespace with a /run of its own.

    Raises RuntimeError with the end of its log when it is not ready within a minute.
    """
    config, log = work / "ganesha.conf", work / "ganesha.log"
    config.write_text(_GANESHA.format(share=share))
    log.unlink(missing_ok=True)
    argv = ["ganesha.nfsd", "-F", "-f", str(config), "-L", str(log), "-p", str(work / "ganesha.pid")]
    with subprocess.Popen(["rpcbind", "-f", "-w"]) as binder:
        try:
            time.sleep(0.5)
            with subprocess.Popen(argv) as server:
                try:
                    _wait_ready(server, log)
                    yield
                finally:
                    server.kill()
        finally:
            binder.kill()


def _wait_ready(server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while "NFS SERVER INITIALIZED" not in (text := log.read_text() if log.exists() else ""):
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"ganesha.nfsd does not serve:\n{text[-3000:]}")
        time.sleep(0.2)
