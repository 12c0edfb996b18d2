"""PCs that are off and wait for their magic packet: their network cards have power, and look at every frame."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence

from tests.lab.pc import Pc

_SYNC = b"\xff" * 6


class Sleepers:
    """Starts each of `pcs` that is off when a frame on the wire has its MAC sixteen times, and its password if it wants one."""

    def __init__(self, wire: socket.socket, pcs: Sequence[Pc]) -> None:
        self._wire = wire
        self._pcs = pcs
        self._closed = False
        self.heard: list[str] = []  # the MAC of each magic packet, whoever it is for
        self._thread = threading.Thread(target=self._listen, name="lab-sleepers", daemon=True)
        self._wire.settimeout(0.2)
        self._thread.start()

    def close(self) -> None:
        self._closed = True
        self._thread.join()
        self._wire.close()

    def _listen(self) -> None:
        while not self._closed:
            try:
                frame = self._wire.recv(65536)
            except TimeoutError:
                continue
            for mac, password in _magic(frame):
                self.heard.append(mac)
                for pc in self._pcs:
                    if pc.mac == mac and pc.wakes and not pc.running and pc.secure_on in ("", password):
                        pc.boot()


def _magic(frame: bytes) -> Iterator[tuple[str, str]]:
    """The MAC of every magic packet in a frame, wherever it stands there, and the six bytes after it."""
    at = frame.find(_SYNC)
    while at >= 0:
        mac, end = frame[at + 6 : at + 12], at + 102
        if len(mac) == 6 and frame[at + 6 : end] == mac * 16:
            yield mac.hex(":"), frame[end : end + 6].hex(":")
        at = frame.find(_SYNC, at + 1)
