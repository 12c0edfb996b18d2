"""The lean clients of bench-fanout against the servers that they were written for: everybody gets every message, once."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from agents import services, tasks
from agents.models import Command, CommandStatus, Verb
from fleet.models import Client, ClientState
from tests.agents.boots import KERNEL
from tests.agents.gateways import gateway
from tests.agents.rooms import Room, make_room
from tests.bench import fanout
from tests.bench.brokers import daemon, mqtt, nats
from tests.bench.brokers.audience import Audience, Wire
from tests.bench.brokers.gathering import TEXT, Round, Said, System, gathered
from tests.bench.brokers.mosquitto import mosquitto
from tests.bench.brokers.nats_server import nats_server
from tests.services import celery_sends_to, redis_server, wait_for
from tests.world import make_client

CLIENTS = 20
Make = Callable[[Path], AbstractContextManager[System]]


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize("make", [mosquitto, nats_server], ids=["mosquitto", "nats"])
def test_every_subscriber_of_a_broker_gets_each_message(make: Make, tmp_path: Path) -> None:
    with make(tmp_path) as system, gathered(system, CLIENTS) as gathering:
        for _ in range(2):
            heard = gathering.round()
            assert len(heard.received) == CLIENTS
            assert heard.received[0] > 0
            assert heard.answered == []


@pytest.mark.slow
@pytest.mark.once
def test_a_reply_comes_after_what_it_replies_to(tmp_path: Path) -> None:
    with nats_server(tmp_path, replies=CLIENTS) as system, gathered(system, CLIENTS) as gathering:
        heard = gathering.round()
    assert len(heard.answered) == CLIENTS
    assert all(answered > received for received, answered in zip(heard.received, heard.answered, strict=True))


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize("make", [mosquitto, nats_server], ids=["mosquitto", "nats"])
def test_a_message_that_comes_twice_is_no_result(make: Make, tmp_path: Path) -> None:
    with make(tmp_path) as system:
        once = system.say

        def twice() -> Said:
            said = once()
            once()
            return said

        system.say = twice
        with (
            gathered(system, CLIENTS) as gathering,
            pytest.raises(RuntimeError, match=r"to 20 of 20 clients, \d+ times"),
        ):
            gathering.round()


@pytest.fixture
def room(transactional_db: None, settings: Settings) -> Iterator[Room]:
    with redis_server() as queue, gateway(queue.url) as gate, make_room(gate, queue.url, settings) as room:
        yield room


@pytest.mark.slow
def test_our_clients_boot_and_accept_each_message_and_show_it(room: Room) -> None:
    clients = [make_client(room.world.clubroom, daemon.mac_of(who)) for who in range(CLIENTS)]
    shown = Command.objects.filter(status=CommandStatus.SUCCEEDED, result={"shown": "tty1"})

    def say() -> Said:
        with celery_sends_to("redis://127.0.0.1:1/0"):
            args = {"text": TEXT, "seconds": 10}
            order = services.order(Verb.MESSAGE, clients, "the show", room.world.vera, args=args)
        said = Said(time.monotonic())
        tasks.send_order(str(order.pk))
        return said

    def settle() -> None:
        ready = Client.objects.filter(state=ClientState.READY)
        wait_for(lambda: ready.count() == CLIENTS, "all are ready", 60)
        wait_for(lambda: not Command.objects.filter(status__in=Command.OPEN).exists(), "all have shown it", 60)

    place = {"port": room.gate.port, "site": room.world.clubroom.slug, "kernel": KERNEL}
    system = System("ours", daemon.__name__, place, lambda: [room.gate.service.pid], say, settle)
    with gathered(system, CLIENTS) as gathering:
        for number in (1, 2):
            heard = gathering.round()
            assert all(answered > received for received, answered in zip(heard.received, heard.answered, strict=True))
            assert shown.count() == number * CLIENTS


@pytest.mark.parametrize(
    ("split", "pieces"),
    [
        (lambda data: mqtt.split(data)[2], [mqtt.hello("a"), mqtt.publish(b"b" * 300), mqtt.packet(mqtt.PUBACK, b"\0\1")]),
        (lambda data: nats.split(data)[1], [b"INFO {}\r\n", b"MSG a 1 3\r\na\r\n\r\n", b"MSG a 1 b 1\r\nc\r\n", b"PONG\r\n"]),
    ],
    ids=["mqtt", "nats"],
)  # fmt: skip
def test_what_comes_byte_by_byte_is_found_whole(split: Callable[[bytes], int], pieces: list[bytes]) -> None:
    found = []

    def arrived(data: bytes) -> int:
        used = split(data)
        found.extend([data[:used]] if used else [])
        return used

    wire = Wire(arrived)
    for byte in b"".join(pieces):
        wire.data_received(bytes([byte]))
    assert found == pieces


def test_a_round_is_over_when_everybody_is_answered_and_no_sooner() -> None:
    audience = Audience(2, are_answered=True)
    audience.received(0)
    audience.answered(0)
    audience.received(1)
    audience.received(1)
    assert not audience.over.is_set()
    audience.answered(1)
    assert audience.over.is_set()
    assert audience.told()["again"] == 1


def test_ours_is_compared_by_the_99th_percentile_with_the_fastest_broker_and_with_salt() -> None:
    def figures(delivered_s: float, known_s: float) -> dict[str, float]:
        heard = [delivered_s] * 199 + [9.0]  # the last one counts for nobody
        return fanout.figures([Round(heard, [known_s] * 200, 0.0, 0.0)])

    found = {"mosquitto": figures(0.2, 1), "nats": figures(0.1, 1), "salt": figures(0.6, 8), "ours": figures(0.3, 2)}
    assert found["ours"]["delivered_last_s"] == 9.0
    assert fanout.ratios(found) == {"ours_vs_fastest": 3.0, "ours_vs_salt": 0.5, "known_vs_salt": 0.25}
