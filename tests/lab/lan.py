"""A LAN in a network namespace of its own: bridge, cables, DHCP, and the uplink to the gateway.

The namespace has no name and lives by an open file descriptor: nothing can be left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from tests.lab.process import Keeper, LabError, end, need

CLONE_NEWNET = 0x40000000
ETH_P_ALL = 0x0003
SERVER = "10.77.0.1"
PREFIX = "fd00:77::"
P = ParamSpec("P")
T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


class Lan:
    """`SERVER` answers DHCP; it can forward TCP ports to the same ports on the host's loopback."""

    def __init__(self, keeper: Keeper, directory: Path, bootfile: str) -> None:
        """`bootfile` is the URL that DHCP gives to the firmware. Raises LabError without root."""
        if os.geteuid() != 0:
            raise LabError("A bridged lab needs root; Lab(network='user') does without.")
        need("dnsmasq", "dnsmasq-base")
        need("ip", "iproute2")
        self._keeper = keeper
        self._directory = directory
        self._taps = 0
        self._namespace = _in_thread(_new_namespace)
        # The server hangs on a cable of its own, so that pulling it is a real one: packets just stop.
        self._ip("link add lan type bridge forward_delay 0")
        self._ip("link add uplink type veth peer name server")
        self._ip("link set uplink master lan up")
        self._ip(f"addr add {SERVER}/24 dev server")
        self._ip(f"addr add {PREFIX}1/64 dev server nodad")
        for name in ("lo", "lan", "server"):
            self._ip(f"link set {name} up")
        self._dnsmasq = self._start_dnsmasq(bootfile)
        self._uplinks: list[Uplink] = []

    def forward(self, port: int) -> None:
        """One more port of `SERVER` that leads to the same port on the host's loopback."""
        self._uplinks.append(Uplink(_in_thread(self._listen, port), port))

    def tap(self) -> str:
        """A new port of the switch; returns the name of its tap device."""
        self._taps += 1
        name = f"tap{self._taps}"
        self._ip(f"tuntap add {name} mode tap")
        self._ip(f"link set {name} master lan up")
        return name

    def unplug(self) -> None:
        """Pull the server's cable: no DHCP, no gateway."""
        self._ip("link set uplink down")

    def plug(self) -> None:
        self._ip("link set uplink up")

    def start(self, argv: list[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a process inside the LAN."""
        return self._keeper.start([*self._enter(), *argv], log, keep_open=(self._namespace,))

    def run(self, argv: list[str]) -> str:
        """Run a command inside the LAN and return what it printed."""
        done = subprocess.run(
            [*self._enter(), *argv], pass_fds=(self._namespace,), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise LabError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def ear(self) -> socket.socket:
        """Hears every frame that reaches the bridge, as the network cards of the PCs do; one at a time by recv()."""

        def listen() -> socket.socket:
            self._setns()
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(ETH_P_ALL))
            wire.bind(("lan", 0))
            return wire

        return _in_thread(listen)

    def send(self, packet: bytes, port: int) -> None:
        """Broadcast a UDP packet on the LAN (wake-on-LAN: port 9)."""

        def broadcast() -> None:
            self._setns()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                sender.bind((SERVER, 0))
                sender.sendto(packet, ("10.77.0.255", port))

        _in_thread(broadcast)

    def close(self) -> None:
        for uplink in self._uplinks:
            uplink.close()
        end(self._dnsmasq)
        os.close(self._namespace)

    def _start_dnsmasq(self, bootfile: str) -> subprocess.Popen[bytes]:
        return self.start(
            [
                *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0"),
                # A change of user or group would clear the parent-death signal (prctl(2)).
                *("--user=root", "--group=root"),
                *("--interface=server", "--bind-interfaces", "--pid-file=", "--log-facility=-"),
                f"--dhcp-leasefile={self._directory / 'leases'}",
                *(
                    "--dhcp-range=10.77.0.50,10.77.0.250,1h",
                    "--dhcp-authoritative",
                    f"--dhcp-boot={bootfile}",
                ),
                f"--dhcp-option=option:dns-server,{SERVER}",
                # dnsmasq pings an address before it offers it and waits three seconds for the answer.
                "--no-ping",
                # iPXE asks for IPv6 routers too, and without an answer starts its download 16 s later. The
                # advertisement promises no route (lifetime 0).
                *("--enable-ra", f"--dhcp-range={PREFIX},ra-only", "--ra-param=server,0,0"),
                # iPXE's own option 175, sub-option 176 (no-pxedhcp): there is no ProxyDHCP to wait for.
                "--dhcp-option=encap:175,176,1b",
            ],
            self._directory / "dnsmasq.log",
        )

    def _listen(self, port: int) -> socket.socket:
        self._setns()
        return socket.create_server((SERVER, port), backlog=128)

    def _setns(self) -> None:
        """Put the calling thread into the LAN; it must end there."""
        if _libc.setns(self._namespace, CLONE_NEWNET):
            raise LabError(f"Entering the lab's network namespace: {os.strerror(ctypes.get_errno())}")

    def _enter(self) -> list[str]:
        return ["nsenter", f"--net=/proc/self/fd/{self._namespace}", "--"]

    def _ip(self, arguments: str) -> None:
        self.run(["ip", *arguments.split()])


class Uplink:
    """Copies bytes between a listening socket inside the LAN and a port of the host's loopback."""

    def __init__(self, listener: socket.socket, port: int) -> None:
        self._listener = listener
        self._port = port
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        threading.Thread(target=self._accept, name="lab-uplink", daemon=True).start()

    def close(self) -> None:
        self._closed = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                _hang_up(connection)

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._port), timeout=10)
        except OSError:  # nobody listens: the client sees its connection reset
            client.close()
            return
        server.settimeout(None)
        with self._lock:
            self._open |= {client, server}
        back = threading.Thread(target=_copy, args=(server, client), daemon=True)
        back.start()
        _copy(client, server)
        back.join()
        with self._lock:
            self._open -= {client, server}
        client.close()
        server.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Until one end is closed; then the other is told."""
    try:
        while block := source.recv(1 << 18):
            target.sendall(block)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        _hang_up(source)
        _hang_up(target)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side was faster
        connection.shutdown(socket.SHUT_RDWR)


def _new_namespace() -> int:
    """A new network namespace around the calling thread; returns a descriptor that keeps it."""
    if _libc.unshare(CLONE_NEWNET):
        raise LabError(f"Making a network namespace: {os.strerror(ctypes.get_errno())}")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def _in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call it in a thread of its own: one that changed its namespace cannot be used again."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(function, *args, **kwargs).result()


def apart(function: Callable[[], T]) -> T:
    """Call it in a network namespace of its own, which ends with it; processes that it starts are in there, too."""

    def inside() -> T:
        os.close(_new_namespace())
        return function()

    return _in_thread(inside)
