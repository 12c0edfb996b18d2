"""The lab: a network and the PCs on it."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from tests.lab.lan import SERVER, Lan
from tests.lab.pc import Pc
from tests.lab.process import Keeper, need
from tests.lab.sleepers import Sleepers

USER_SERVER = "10.0.2.2"  # what QEMU's user network calls the host's loopback


class Lab:
    """A context: entering makes the network, leaving ends all of it.

    network="bridge": a LAN in a namespace of its own, with dnsmasq; needs root.
    network="user": QEMU's own network, one per PC; needs nothing, PCs don't see each other.
    """

    def __init__(
        self,
        gateway_port: int,
        network: Literal["bridge", "user"] = "bridge",
        script: str = "/boot/v1/start.ipxe",
        directory: Path | None = None,
        gateway_inside: bool = False,
    ) -> None:
        """`gateway_port` is where the gateway listens on 127.0.0.1; `script` what the firmware fetches there.

        With `gateway_inside` it listens at SERVER in the LAN instead, as a boot host does: start it by `lan.start`.
        Logs go to `directory`, which stays; without one to a temporary one, which doesn't.
        """
        self._network = network
        self.url = f"http://{SERVER if network == 'bridge' else USER_SERVER}:{gateway_port}"
        self._script = script
        self._port = gateway_port
        self._given = directory
        self._gateway_inside = gateway_inside
        self.pcs: list[Pc] = []

    def __enter__(self) -> Self:
        need("qemu-system-x86_64", "qemu-system-x86")
        need("setpriv", "util-linux")
        self._temporary = tempfile.TemporaryDirectory(prefix="fleet-lab-")
        self.directory = self._given or Path(self._temporary.name)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._keeper = Keeper()
        self._lan: Lan | None = None
        self._sleepers: Sleepers | None = None
        try:
            if self._network == "bridge":
                self._lan = Lan(self._keeper, self.directory, self.url + self._script)
                if not self._gateway_inside:
                    self._lan.forward(self._port)
                self._sleepers = Sleepers(self._lan.ear(), self.pcs)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._sleepers is not None:
            self._sleepers.close()
        for pc in self.pcs:
            pc.close()
        if self._lan is not None:
            self._lan.close()
        self._keeper.close()
        self._temporary.cleanup()

    def pc(
        self,
        name: str = "",
        *,
        gpu: str | Sequence[str] = "std",
        memory_mib: int = 1024,
        cpus: int = 2,
        extra: Sequence[str] = (),
        wakes: bool = True,
        secure_on: str = "",
    ) -> Pc:
        """A new PC, switched off, with its cable in; see Pc."""
        name = name or f"pc-{len(self.pcs) + 1}"
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        (directory / "serial.log").unlink(missing_ok=True)  # of the run before; a reboot adds to it
        sockets = Path(self._temporary.name)
        pc = Pc(name, self, directory, sockets, gpu=gpu, memory_mib=memory_mib, cpus=cpus, extra=extra)
        pc.wakes, pc.secure_on = wakes, secure_on
        self.pcs.append(pc)
        return pc

    @property
    def lan(self) -> Lan:
        """The LAN of a bridged lab."""
        if self._lan is None:
            raise AttributeError("A lab on QEMU's user network has no LAN.")
        return self._lan

    def unplug(self) -> None:
        """Cut the server off from all PCs."""
        if self._lan is not None:
            self._lan.unplug()
            return
        for pc in self.pcs:
            pc.unplug()

    def plug(self) -> None:
        if self._lan is not None:
            self._lan.plug()
            return
        for pc in self.pcs:
            pc.plug()

    def netdev(self, name: str) -> str:
        """The Network that a PC asks for."""
        if self._lan is not None:
            return f"tap,id=net0,ifname={self._lan.tap()},script=no,downscript=no"
        return f"user,id=net0,hostname={name},bootfile={self.url}{self._script}"

    def start(self, argv: list[str], log: Path) -> subprocess.Popen[bytes]:
        if self._lan is not None:
            return self._lan.start(argv, log)
        return self._keeper.start(argv, log)
