"""A share for virtual PCs: nfs-ganesha, a user-space NFS server, on the loopback."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path
from typing import Self

from tests.lab.process import Keeper, LabError, end, need

_READY_S = 60.0
# Without grace: a server that comes back answers at once, instead of waiting for locks to be claimed that nobody had.
_CONFIG = """
NFS_CORE_PARAM {{ Protocols = 4; NFS_Port = {port}; {bind} Enable_NLM = false; Enable_RQUOTA = false; }}
NFSv4 {{ Graceless = true; RecoveryRoot = {work}; Minor_Versions = 1; Only_Numeric_Owners = {numeric}; }}
NFS_KRB5 {{ Active_krb5 = false; }}
EXPORT {{ Export_Id = 1; Path = {share}; Pseudo = /store; Protocols = 4; Access_Type = RO;
    Squash = None; SecType = sys; Transports = TCP; FSAL {{ Name = VFS; }} }}
LOG {{ Default_Log_Level = EVENT; }}
"""


class Share:
    """A context: the directory `exported` as /store of an NFSv4 server, read-only; logs and state go to `work`."""

    def __init__(
        self, exported: Path, work: Path, bind: str = "Bind_addr = 127.0.0.1;", numeric_owners: bool = True
    ) -> None:
        """`bind` is empty in a namespace with nothing but a loopback: there ganesha finds no address of that name."""
        need("ganesha.nfsd", "nfs-ganesha nfs-ganesha-vfs")
        self._exported, self._work = exported.resolve(), work.resolve()
        self._bind, self._numeric = bind, str(numeric_owners).lower()
        self._keeper = Keeper()
        self._server: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._keeper.close()

    def url(self, name: str, host: str = "10.0.2.2") -> str:
        """The file `name` as a boot plan names it, for PCs that call our loopback `host`."""
        return f"nfs://{host}:{self.port}/store/{name}"

    def start(self) -> None:
        """Returns when it serves; raises LabError with the end of its log when that takes longer than a minute."""
        config, log = self._work / "ganesha.conf", self._work / "ganesha.log"
        values = {"port": self.port, "bind": self._bind, "work": self._work, "share": self._exported}
        config.write_text(_CONFIG.format(**values, numeric=self._numeric))
        log.unlink(missing_ok=True)
        argv = ["ganesha.nfsd", "-F", "-f", str(config), "-L", str(log), "-p", str(self._work / "ganesha.pid")]
        self._server = self._keeper.start(argv, self._work / "ganesha.out")
        deadline = time.monotonic() + _READY_S
        while "NFS SERVER INITIALIZED" not in (text := log.read_text() if log.exists() else ""):
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"ganesha.nfsd does not serve:\n{text[-3000:]}")
            time.sleep(0.1)

    def kill(self) -> None:
        """As if somebody pulled its plug."""
        if self._server is not None:
            self._server.kill()
            end(self._server)
            self._server = None
