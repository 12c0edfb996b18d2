"""Whoever has the database can write rows, and switches nobody on by them: gateway, relays and ports ask for the sender's signature."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.utils import timezone
from pytest_django.fixtures import Settings

from agents import sending, services, speaking
from agents.daemon import protocol
from agents.gateway import waker
from agents.models import BootSession, Command, CommandStatus, PowerPort, Verb, Wake, Way
from agents.power import permits, pressing, relays
from fleet.models import Client
from fleet.signing import Signer, make_keys
from tests.agents.boots import boot, command_keys, make_release
from tests.agents.restores import make_envelope
from tests.trust.forging import change_signed
from tests.world import World, make_client

Forge = Callable[[Command, Path], dict[str, Any]]


@pytest.fixture
def woken(world: World, keys: Path, settings: Settings) -> Command:
    """One that the sender has let."""
    settings.WAKE_BROADCAST = ["127.255.255.255"]
    client = make_client(world.clubroom, network="10.20.0.0/24", secure_on="de:ad:be:ef:00:01")
    order = services.order(Verb.WAKE, [client], "doors open", world.vera)
    sending.send(order.commands.all())
    return order.commands.get()


def test_a_permit_is_for_one_command_its_client_and_the_time_of_a_boot(woken: Command) -> None:
    known = permits.keys()
    assert permits.permitted(woken, known) == woken.client.mac
    assert woken.envelope.sequence is None, "no number of the client's is used up"
    with time_machine.travel(timezone.now() + timedelta(seconds=299), tick=False):
        assert permits.permitted(woken, known)
    with time_machine.travel(timezone.now() + timedelta(seconds=301), tick=False):
        assert not permits.permitted(woken, known)


def test_no_daemon_takes_a_permit_for_an_envelope(woken: Command, keys: Path) -> None:
    permit = woken.envelope
    wrapped = speaking.envelope(bytes(permit.body), bytes(permit.signature), permit.key_id)
    with pytest.raises(protocol.Refused, match="bad-signature"):
        protocol.authenticate(wrapped, command_keys(keys), str(woken.client_id), "boot")


def permit(command: Command, signer: Signer) -> dict[str, Any]:
    now = timezone.now()
    made = permits.permit(command, signer, now, now + timedelta(seconds=300))
    return {"body": made.body, "signature": made.signature, "key_id": made.key_id}


def nothing(command: Command, keys: Path) -> dict[str, Any]:
    return {"body": b"", "signature": b"", "key_id": ""}


def longer(command: Command, keys: Path) -> dict[str, Any]:
    lines = bytes(command.envelope.body).decode().splitlines()
    return {"body": "\n".join([*lines[:-1], "9" * 13, ""]).encode()}


def own_key(command: Command, keys: Path) -> dict[str, Any]:
    make_keys(keys / "own")
    signer = Signer.load(str(keys / "own" / "command.key"), "command")
    return {**permit(command, signer), "key_id": command.envelope.key_id}


def session_key(command: Command, keys: Path) -> dict[str, Any]:
    signer = Signer.load(str(keys / "session.key"), "session")
    return permit(command, signer)


FORGERIES = [nothing, longer, own_key, session_key]


def packets(command: Command) -> dict[Any, bytes]:
    return waker._packets([command.pk])


@pytest.mark.parametrize("forge", FORGERIES)
def test_rows_alone_switch_nobody_on(woken: Command, keys: Path, forge: Forge) -> None:
    assert packets(woken)
    args = {"macs": [{"mac": woken.client.mac, "secure": ""}], "packets": 3}
    assert relays.permitted(args)["macs"] == [{"mac": woken.client.mac, "secure": "de:ad:be:ef:00:01"}]
    change_signed(woken, **forge(woken, keys))
    assert packets(woken) == {}
    assert relays.permitted(args)["macs"] == []


def test_a_permit_of_one_command_is_none_of_another(world: World, woken: Command) -> None:
    other = make_client(world.clubroom, "52:54:00:00:00:02")
    copied = Command.objects.create(
        order=woken.order,
        client=other,
        verb=Verb.WAKE,
        status=CommandStatus.SENT,
        sent_at=timezone.now(),
        expires_at=woken.expires_at,
    )
    theirs = woken.envelope
    make_envelope(copied, body=theirs.body, signature=theirs.signature, key_id=theirs.key_id)
    assert packets(copied) == {}


def test_a_permit_names_its_mac_whatever_the_row_says_now(woken: Command) -> None:
    mac = woken.client.mac
    Client.objects.filter(pk=woken.client_id).update(mac="52:54:00:00:00:99")
    assert list(packets(woken).values()) == [waker.magic(mac, "de:ad:be:ef:00:01")]


def test_an_envelope_of_another_command_is_no_permit(world: World, woken: Command) -> None:
    make_release(world.gamer)
    client = make_client(world.clubroom, "52:54:00:00:00:02")
    boot(client)
    order = services.order(Verb.RESTART, [client], "why", world.vera)
    sending.send(order.commands.all())
    signed = order.commands.get().envelope
    change_signed(woken, body=signed.body, signature=signed.signature, key_id=signed.key_id)
    assert packets(woken) == {}


def test_the_sender_signs_no_relay_for_whom_it_has_not_let_be_woken(world: World, woken: Command, keys: Path) -> None:
    """A relay's command that somebody put into the database: it would wake a hall, under another cap."""
    make_release(world.gamer)
    near = make_client(world.clubroom, "52:54:00:00:00:02")
    boot(near)
    BootSession.objects.update(protocol=2)
    others = [{"mac": f"52:54:00:00:01:{number:02x}", "secure": ""} for number in range(20)]
    for macs, status in ((others, CommandStatus.FAILED), ([*others, {"mac": woken.client.mac, "secure": ""}], "sent")):
        Command.objects.filter(client=near).update(status=CommandStatus.CANCELLED)
        relay = Command.objects.create(
            order=woken.order,
            client=near,
            verb=Verb.RELAY,
            args={"macs": macs, "packets": 3},
            expires_at=timezone.now() + timedelta(minutes=1),
        )
        sending.send(Command.objects.filter(pk=relay.pk))
        relay.refresh_from_db()
        assert relay.status == status
    session = BootSession.objects.get(client=near)
    one = relay.envelope
    wrapped = speaking.envelope(bytes(one.body), bytes(one.signature), one.key_id)
    signed = protocol.authenticate(wrapped, command_keys(keys), str(near.pk), str(session.boot_id))
    assert signed.args["macs"] == [{"mac": woken.client.mac, "secure": "de:ad:be:ef:00:01"}]
    assert "de:ad" not in str(relay.args)


def test_a_port_is_not_pressed_without_one(world: World, woken: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    PowerPort.objects.create(client=woken.client, address="http://127.0.0.1:1")
    Wake.objects.update(way=Way.PORT)
    change_signed(woken, signature=b"x" * 64)
    pressing.press(woken.pk)
    woken.refresh_from_db()
    assert (woken.status, woken.reason) == (
        CommandStatus.FAILED,
        "The sender has not let it, or too long ago. Order it again.",
    )
