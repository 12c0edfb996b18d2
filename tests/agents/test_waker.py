"""The gateway as boot host: real wake packets on real sockets, once a round, with a mark that is evidence."""

import asyncio
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

import pytest
from pytest_django.fixtures import Settings

from agents import sending, services, tasks
from agents.gateway import waker
from agents.gateway.app import Gateway
from agents.gateway.database import Database
from agents.gateway.waker import Waker, broadcast, magic
from agents.models import Command, CommandStatus, Verb, Wake
from fleet.models import Client
from fleet.signing import Signer
from tests.agents.gateways import gateway, running
from tests.agents.rooms import make_room
from tests.lab.lan import apart
from tests.services import celery_sends_to, redis_server, wait_for
from tests.world import World, make_client, make_world

T = TypeVar("T")
LOOPBACK = "127.255.255.255"  # the loopback network's broadcast address
SECRET = "de:ad:be:ef:00:01"


@contextmanager
def listening(port: int = 0) -> Iterator[tuple[int, Callable[[], list[bytes]]]]:
    """A socket that hears broadcasts: its port, and what came since it was asked last."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as heard:
        heard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        heard.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        heard.bind(("", port))
        heard.setblocking(False)

        def take() -> list[bytes]:
            packets = []
            while True:
                try:
                    packets.append(heard.recv(1024))
                except BlockingIOError:
                    return packets

        yield heard.getsockname()[1], take


def test_a_packet_is_the_mac_sixteen_times_and_the_password() -> None:
    plain = magic("52:54:00:00:00:01")
    assert plain == bytes.fromhex("ff" * 6 + "525400000001" * 16)
    assert magic("52:54:00:00:00:01", SECRET) == plain + bytes.fromhex("deadbeef0001")


@pytest.fixture
def heard(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[bytes]]]:
    settings.WAKE_BROADCAST = [LOOPBACK]
    monkeypatch.setattr(waker, "PAUSE_S", 0.0)
    with listening() as (port, take):
        monkeypatch.setattr(waker, "PORT", port)
        yield take


@pytest.fixture
def committed(transactional_db: None, keys: Path) -> World:
    return make_world()


def woken(world: World, *clients: Client) -> list[Command]:
    with celery_sends_to("redis://127.0.0.1:1/0"):
        order = services.order(Verb.WAKE, clients, "doors open", world.vera)
        sending.send(order.commands.all())
    return list(order.commands.order_by("client__mac"))


def look(*wakers: Waker) -> None:
    """Have each look once, with a database that lives as long as the event loop."""

    async def all_of_them() -> None:
        for one in wakers:
            one._database = Database()
            async with running(one._database):
                await one.look()

    asyncio.run(all_of_them())


def new_waker() -> Waker:
    return Waker(Database())


def test_each_is_sent_three_packets_and_it_is_noted(committed: World, heard: Callable[[], list[bytes]]) -> None:
    clients = [make_client(committed.clubroom), make_client(committed.clubroom, "52:54:00:00:00:02", secure_on=SECRET)]
    commands = woken(committed, *clients)
    look(new_waker())
    packets = heard()
    for client in clients:
        assert packets.count(magic(client.mac, client.secure_on)) == 3
    assert len(packets) == 6
    for command in commands:
        wake = Wake.objects.get(pk=command.pk)
        assert (wake.dealt, wake.sent_at is not None) == (1, True)


def test_a_round_is_sent_once_and_the_next_one_again(committed: World, heard: Callable[[], list[bytes]]) -> None:
    woken(committed, make_client(committed.clubroom))
    one = new_waker()
    look(one)
    look(one)
    assert len(heard()) == 3
    Wake.objects.update(rounds=2)
    look(one)
    assert len(heard()) == 3
    assert Wake.objects.get().dealt == 2


def test_each_gateway_sends_into_its_own_lan_although_another_has(
    committed: World, heard: Callable[[], list[bytes]]
) -> None:
    woken(committed, make_client(committed.clubroom))
    one = new_waker()
    look(one, new_waker())
    look(one)
    assert len(heard()) == 6


@pytest.mark.parametrize("status", [one for one in CommandStatus if one != CommandStatus.SENT])
def test_nothing_is_sent_for_what_is_not_under_way(
    committed: World, heard: Callable[[], list[bytes]], status: CommandStatus
) -> None:
    woken(committed, make_client(committed.clubroom))
    Command.objects.update(status=status)
    look(new_waker())
    assert heard() == []
    assert Wake.objects.get().dealt == 0


def test_a_row_without_the_senders_permit_moves_nothing_and_is_told_once(
    committed: World, heard: Callable[[], list[bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    with patch.object(Signer, "sign", lambda *_: b"x" * 64):
        woken(committed, make_client(committed.clubroom))
    one = new_waker()
    look(one)
    look(one)
    assert heard() == []
    assert caplog.text.count("has no permit of the sender's") == 1
    assert Wake.objects.get().dealt == 0


def test_what_could_not_be_sent_is_not_noted(committed: World, heard: Callable[[], list[bytes]]) -> None:
    woken(committed, make_client(committed.clubroom))
    one = new_waker()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waker, "broadcast", _no_network)
        with pytest.raises(OSError, match="no network"):
            look(one)
    assert Wake.objects.get().dealt == 0
    look(one)
    assert len(heard()) == 3


def _no_network(*_: object) -> None:
    raise OSError("no network")


def test_a_nudge_has_it_look_at_once(
    keys: Path, heard: Callable[[], list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gateway()
    gate._nudged(b'{"commands": []}')
    assert not gate._waker.hint.is_set()
    gate._nudged(b'{"wake": true}')
    assert gate._waker.hint.is_set()
    monkeypatch.setattr(waker, "LOOK_S", 3600.0)

    async def looked() -> bool:
        seen = asyncio.Event()
        monkeypatch.setattr(gate._waker, "look", _noting(seen))
        running = asyncio.create_task(gate._waker.run())
        await asyncio.wait_for(seen.wait(), 30)
        return running.cancel()

    assert asyncio.run(looked())


def _noting(seen: asyncio.Event) -> Callable[[], Awaitable[None]]:
    async def look() -> None:
        seen.set()

    return look


@pytest.mark.root
def test_everywhere_means_on_every_network_whatever_the_default_route() -> None:
    """A host with a boot LAN and an uplink, the default route by neither; in a namespace of its own."""
    packet = magic("52:54:00:00:00:01")

    def on_two_networks() -> list[str]:
        for name in ("uplink", "lan"):
            _ip(f"link add {name} type veth peer name {name}-end")
            _ip(f"link set {name}-end up")
            _ip(f"link set {name} up")
        _ip("addr add 192.0.2.1/24 dev uplink")
        _ip("addr add 10.20.0.1/24 dev lan")
        ends = [_raw(f"{name}-end") for name in ("uplink", "lan")]
        try:
            broadcast([packet], ["255.255.255.255"])
            return [name for name, end in zip(("uplink", "lan"), ends, strict=True) if _saw(end, packet)]
        finally:
            for end in ends:
                end.close()

    assert apart(on_two_networks) == ["uplink", "lan"]


@pytest.mark.root
def test_a_host_without_any_network_says_so() -> None:
    def alone() -> str:
        _ip("link set lo up")
        with pytest.raises(OSError, match="no network") as caught:
            broadcast([magic("52:54:00:00:00:01")], ["255.255.255.255"])
        return str(caught.value)

    assert "no network" in apart(alone)


def _ip(arguments: str) -> None:
    """Of the namespace of the calling thread."""
    subprocess.run(["ip", *arguments.split()], check=True)


def _raw(interface: str) -> socket.socket:
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(0x0003))
    wire.bind((interface, 0))
    wire.settimeout(5)
    return wire


def _saw(wire: socket.socket, packet: bytes) -> bool:
    """Whether the packet came by, as a broadcast to everybody."""
    try:
        while True:
            frame = wire.recv(2048)
            if packet in frame:
                return frame[:6] == b"\xff" * 6
    except TimeoutError:
        return False


@pytest.mark.root
@pytest.mark.slow
def test_a_gateway_that_is_nudged_wakes_and_one_that_is_not_finds_it(
    transactional_db: None, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        redis_server() as queue,
        gateway(queue.url, wake_broadcast=LOOPBACK) as gate,
        make_room(gate, queue.url, settings) as room,
        listening(waker.PORT) as (_, take),
    ):
        for number, url in enumerate((queue.url, "redis://127.0.0.1:1/0"), 1):
            settings.REDIS_URL = url
            sending.connection.cache_clear()
            client = room.client(number)
            with celery_sends_to("redis://127.0.0.1:1/0"):
                order = services.order(Verb.WAKE, [client], "doors open", room.world.vera)
                tasks.send_order(str(order.pk))
            heard: list[bytes] = []

            def woken(client: Client = client, heard: list[bytes] = heard) -> bool:
                heard.extend(packet for packet in take() if packet == magic(client.mac))
                return len(heard) >= 3

            wait_for(woken, f"the gateway wakes {client}", 20)
            wait_for(lambda: Wake.objects.filter(dealt=1).count() == number, "it is noted", 10)  # noqa: B023 - called here
        sending.connection.cache_clear()
