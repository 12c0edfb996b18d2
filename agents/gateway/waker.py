"""The site's boot host: a gateway stands in the boot LAN, and broadcasts wake packets there.

The database says for whom: commands to power on that are under way. What this process has sent it remembers, so that each round is sent once;
after a restart once more, which does no harm. The mark in the database is evidence, no lock: of several gateways each sends into its LAN.
"""

import asyncio
import logging
import socket
from collections.abc import Iterable
from contextlib import suppress
from uuid import UUID

from django.conf import settings
from django.utils import timezone

from agents.gateway.database import Database
from agents.models import Command, Wake, Way
from agents.power import permits
from agents.power.relays import PACKETS

log = logging.getLogger(__name__)
LOOK_S = 3.0  # how late it is found for whom the hint was lost
PORT = 9  # discard: any would do, for network cards look at the packet's content alone
PAUSE_S = 0.2  # between the packets for one client: what a switch drops now it may not drop then
EVERYWHERE = "255.255.255.255"


class Waker:
    """Looks when ``hint`` is set, and every few seconds anyway."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sent: dict[UUID, int] = {}  # command → its last round that was sent
        self.hint = asyncio.Event()

    async def run(self) -> None:
        """For as long as the gateway runs."""
        while settings.WAKE_BROADCAST:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self.hint.wait()
            self.hint.clear()
            try:
                await self.look()
            except OSError as error:
                log.error("No wake packet could be sent to %s: %s", ", ".join(settings.WAKE_BROADCAST), error)
            except Exception:
                log.exception("Wake packets were not sent; it is tried again in %s s", LOOK_S)

    async def look(self) -> None:
        """Send what is due, and note that it was sent."""
        rounds = dict(await self._database.read(_under_way))
        self._sent = {command: self._sent.get(command, 0) for command in rounds}
        due = {command: number for command, number in rounds.items() if number > self._sent[command]}
        if not due:
            return
        packets = await self._database.read(_packets, list(due))
        for number in range(PACKETS if packets else 0):
            if number:
                await asyncio.sleep(PAUSE_S)
            broadcast(packets.values(), settings.WAKE_BROADCAST)
        self._sent |= due
        await self._database.write(_note, {command: due[command] for command in packets})


def magic(mac: str, secure: str = "") -> bytes:
    """The packet that a sleeping network card waits for; with its SecureOn password, if it has one."""
    return b"\xff" * 6 + bytes.fromhex(mac.replace(":", "")) * 16 + bytes.fromhex(secure.replace(":", ""))


def broadcast(packets: Iterable[bytes], addresses: Iterable[str]) -> None:
    """Send each packet to each address; to 255.255.255.255 on every network there is. OSError where not one could be sent."""
    packets = list(packets)
    sent, trouble = False, OSError("this host has no network")
    for address in addresses:
        for interface in _interfaces() if address == EVERYWHERE else [""]:
            try:
                with _sender(interface) as sender:
                    for packet in packets:
                        sender.sendto(packet, (address, PORT))
                sent = True
            except OSError as error:  # a network that is down, or has no address, is none to wake anybody in
                trouble = error
    if not sent:
        raise trouble


def _interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex() if name != "lo"]


def _sender(interface: str) -> socket.socket:
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if interface:  # else the packet would leave by the default route, which leads away from the boot LAN
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    except OSError:
        sender.close()
        raise
    return sender


def _under_way() -> list[tuple[UUID, int]]:
    """Everybody who is to be woken by relays, and the present round."""
    wakes = Wake.objects.under_way().filter(way=Way.RELAYS, rounds__gt=0)
    return list(wakes.values_list("command", "rounds"))


def _packets(commands: list[UUID]) -> dict[UUID, bytes]:
    """The packet of each command that has a permit of the sender's; a row alone is nothing to go by."""
    keys, packets = permits.keys(), dict[UUID, bytes]()
    for start in range(0, len(commands), 500):
        rows = Command.objects.filter(pk__in=commands[start : start + 500])
        for command in rows.select_related("client", "envelope"):
            if mac := permits.permitted(command, keys):
                packets[command.pk] = magic(mac, command.client.secure_on)
            else:
                log.warning("The %s has no permit of the sender's, so nothing is sent for it", command)
    return packets


def _note(sent_rounds: dict[UUID, int]) -> None:
    for number in set(sent_rounds.values()):
        sent = [command for command, its in sent_rounds.items() if its == number]
        for start in range(0, len(sent), 500):
            part = Wake.objects.filter(pk__in=sent[start : start + 500], dealt__lt=number)
            part.update(dealt=number, sent_at=timezone.now())
