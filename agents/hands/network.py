"""The PC's networks, and the magic packets that wake others on them (Wake-on-LAN, with SecureOn)."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
import time
from collections.abc import Iterable, Mapping

ADDRESS, FLAGS, BROADCAST, NETMASK = 0x8915, 0x8913, 0x8919, 0x891B  # ioctl SIOCGIF…
UP, HAS_BROADCAST = 0x1, 0x2
PORT = 9  # discard: whoever hears it does nothing, but the network card has seen it
EVERYBODY = "255.255.255.255"
IP_PKTINFO = 8  # socket has no name for it before 3.14
BETWEEN_S = 0.1  # a sleeping switch port loses the first


def ask(interface: str, request: int) -> bytes:
    """What follows the name in an interface's struct ifreq; OSError where it has no such thing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        return fcntl.ioctl(any_socket, request, struct.pack("40s", interface.encode()))[16:]


def address(interface: str, request: int = ADDRESS) -> bytes:
    return ask(interface, request)[4:8]  # of a struct sockaddr_in


def network(interface: str) -> str:
    """`10.20.0.0/24`, the IPv4 network of an interface; '' where it is in none."""
    try:
        mine, mask = (int.from_bytes(address(interface, what), "big") for what in (ADDRESS, NETMASK))
    except OSError:
        return ""
    return f"{socket.inet_ntoa((mine & mask).to_bytes(4, 'big'))}/{bin(mask).count('1')}"  # noqa: FURB161 - bit_count needs 3.10


def broadcasting() -> Iterable[tuple[str, bytes, bytes]]:
    """(name, address, broadcast address) of each interface by which all of its network can be reached."""
    for name in sorted(os.listdir("/sys/class/net")):
        try:
            flags = struct.unpack("H", ask(name, FLAGS)[:2])[0]
            if flags & UP and flags & HAS_BROADCAST:
                yield name, address(name), address(name, BROADCAST)
        except OSError:
            continue  # no address


def magic(mac: str, secure: str) -> bytes:
    """Six times ff, sixteen times the MAC, and the password that some network cards ask for."""
    return b"\xff" * 6 + bytes.fromhex(mac.replace(":", "")) * 16 + bytes.fromhex(secure.replace(":", ""))


def wake(sleepers: Iterable[Mapping[str, str]], packets: int) -> int:
    """Send each sleeper (`mac`, `secure`) so many rounds of packets on every network; how many could be sent."""
    sent = 0
    wanted = [magic(one["mac"], one["secure"]) for one in sleepers]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for round_ in range(packets):
            if round_:
                time.sleep(BETWEEN_S)
            for name, mine, broadcast in broadcasting():
                # By this interface, whatever the routes are: 255.255.255.255 is none's.
                way = struct.pack("i4s4s", socket.if_nametoindex(name), mine, bytes(4))
                for target in (socket.inet_ntoa(broadcast), EVERYBODY):
                    for packet in wanted:
                        try:
                            sender.sendmsg([packet], [(socket.IPPROTO_IP, IP_PKTINFO, way)], 0, (target, PORT))
                            sent += 1
                        except OSError as error:
                            print(f"A magic packet could not be sent on {name}: {error}", file=sys.stderr, flush=True)
    return sent
