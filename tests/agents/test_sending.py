"""What the sender does with an order: numbers it, writes it down, signs it, and hands it over once."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import redis
from django.db import IntegrityError, connection, transaction
from django.utils import timezone
from pytest_django.fixtures import Settings

from agents import sending, services, speaking, tasks
from agents.book import Book
from agents.daemon import protocol
from agents.models import BootSession, Command, CommandStatus, Envelope, HomeRestore, Order, SessionStatus, Verb
from fleet import audit
from fleet.exceptions import SiteError
from fleet.models import AuditEntry, Client
from fleet.signing import Signer
from images import homes
from tests.agents.boots import boot, command_keys, make_release
from tests.agents.conftest import forget
from tests.services import celery_sends_to, redis_server
from tests.world import World, make_client, make_world


@pytest.fixture
def client(world: World, keys: Path) -> Client:
    make_release(world.gamer)
    return make_client(world.clubroom)


def ordered(world: World, client: Client, verb: Verb = Verb.CYCLE) -> Command:
    actor = world.otto if verb == Verb.CAPTURE else world.vera
    return services.order(verb, [client], "why", actor).commands.get()


def sent(command: Command) -> Command:
    """The command after the sender had it."""
    tasks.send_order(str(command.order_id))
    command.refresh_from_db()
    return command


def signed(command: Command) -> bool:
    return Envelope.objects.filter(command=command).exists()


def opened(command: Command, keys: Path) -> protocol.Command:
    """The envelope as the client's daemon opens it."""
    one = command.envelope
    assert one.session is not None
    wrapped = speaking.envelope(bytes(one.body), bytes(one.signature), one.key_id)
    return protocol.authenticate(wrapped, command_keys(keys), str(command.client_id), str(one.session.boot_id))


@pytest.mark.parametrize("verb", [Verb.RESTART, Verb.POWEROFF, Verb.CYCLE, Verb.CAPTURE])
def test_the_daemon_takes_what_the_sender_signed(world: World, client: Client, keys: Path, verb: Verb) -> None:
    session = boot(client)
    command = sent(ordered(world, client, verb))
    assert (command.status, command.envelope.session) == (CommandStatus.SENT, session)
    inside = opened(command, keys)
    assert (inside.command, inside.verb, inside.sequence) == (str(command.pk), verb, command.envelope.sequence)
    assert inside.expires_ms == round(command.expires_at.timestamp() * 1000)
    protocol.admit(inside, 0, round(timezone.now().timestamp() * 1000))
    if verb == Verb.CYCLE:
        assert session.release is not None
        home = session.release.home
        assert inside.args == {"home": home.sha256, "home_bytes": home.bytes, "home_digest": home.tree_digest}
    elif verb == Verb.CAPTURE:
        assert inside.args == {"most_bytes": homes.MOST_BYTES}
    else:
        assert inside.args == {}


def test_each_daemon_gets_an_envelope_of_the_protocol_that_it_speaks(world: World, client: Client, keys: Path) -> None:
    """Those of protocol 3 share a signature; who speaks an older one gets his own."""
    others = [make_client(world.clubroom, f"52:54:00:00:00:{number:02x}") for number in range(16, 22)]
    for number, one in enumerate((client, *others)):
        boot(one)
        BootSession.objects.filter(client=one).update(protocol=1 + number % 3 if number < 6 else 4)
    order = services.order(Verb.CYCLE, [client, *others], "why", world.vera)
    tasks.send_order(str(order.pk))
    signatures = list[bytes]()
    for command in order.commands.select_related("envelope__session"):
        assert command.envelope.session is not None
        inside = opened(command, keys)
        assert inside.version == min(command.envelope.session.protocol, protocol.VERSION)
        assert bytes(command.envelope.body) == speaking.encode(inside, inside.version)
        signatures += [bytes(command.envelope.signature)[:64]] if inside.version == 3 else []
    assert len(signatures) == 3
    assert len(set(signatures)) == 1


def test_numbers_rise_from_command_to_command(world: World, client: Client, keys: Path) -> None:
    other = make_client(world.clubroom, "52:54:00:00:00:02")
    for one in (client, other):
        boot(one)
    sequences = []
    for one in (client, client, other, client):
        command = sent(ordered(world, one))
        sequences.append(opened(command, keys).sequence)
        Command.objects.update(status=CommandStatus.SUCCEEDED)
    assert sequences == sorted(set(sequences))


def test_thousands_are_signed_in_groups_that_grow_and_shrink_each_with_what_the_protocol_writes_for_it(
    world: World, client: Client, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "FIRST_GROUP", 2)
    monkeypatch.setattr(sending, "GROUP", 3)
    others = [make_client(world.clubroom, f"52:54:00:00:00:{number:02x}") for number in range(16, 24)]
    for one in (client, *others):
        boot(one)
    order = services.order(Verb.CYCLE, [client, *others], "why", world.vera)
    tasks.send_order(str(order.pk))
    written = AuditEntry.objects.filter(action="commands.signed").order_by("sequence")
    assert [len(entry.detail["commands"]) for entry in written] == [2, 3, 2, 2]
    for command in order.commands.select_related("envelope__session"):
        inside = opened(command, keys)
        assert (inside.command, inside.client) == (str(command.pk), str(command.client_id))
        assert bytes(command.envelope.body) == speaking.encode(inside, inside.version)


def test_it_is_written_down_what_is_signed_for_which_boot(world: World, client: Client) -> None:
    session = boot(client)
    command = sent(ordered(world, client, Verb.RESTART))
    entry = AuditEntry.objects.get(action="commands.signed")
    assert (entry.actor, entry.subject_id, entry.site) == ("sender", str(command.order_id), world.clubroom)
    signed = {
        "command": str(command.pk),
        "client": str(client.pk),
        "boot": str(session.boot_id),
        "sequence": command.envelope.sequence,
    }
    assert entry.detail == {"verb": "restart", "commands": [signed]}
    assert [*audit.verify()] == []


def test_the_audit_entry_is_committed_before_the_signature_exists(
    transactional_db: None, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    make_release(world.gamer)
    client = make_client(world.clubroom)
    boot(client)
    with celery_sends_to("redis://127.0.0.1:1/0"):
        command = ordered(world, client)

    def pulled_plug(self: object, body: bytes) -> bytes:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Signer, "sign", pulled_plug)
        with pytest.raises(MemoryError):
            tasks.send_order(str(command.order_id))
    command.refresh_from_db()
    assert (command.status, signed(command)) == (CommandStatus.QUEUED, False)
    assert AuditEntry.objects.filter(action="commands.signed").count() == 1
    sent(command)
    numbers = [entry.detail["commands"][0]["sequence"] for entry in AuditEntry.objects.filter(action="commands.signed")]
    assert len(set(numbers)) == 2, "what fell between is sent later, under a number of its own"


def test_two_senders_at_once_make_one_envelope(transactional_db: None, keys: Path) -> None:
    world = make_world()
    make_release(world.gamer)
    client = make_client(world.clubroom)
    boot(client)
    with celery_sends_to("redis://127.0.0.1:1/0"):
        command = ordered(world, client)
    start, faults = threading.Barrier(3), list[Exception]()

    def work() -> None:
        try:
            start.wait()
            tasks.send_order(str(command.order_id))
        except Exception as error:
            faults.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    command.refresh_from_db()
    assert command.status == CommandStatus.SENT
    assert opened(command, keys).sequence == command.envelope.sequence


def test_a_number_that_was_given_before_is_given_to_nobody(
    world: World, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The book was lost, and the clock set back."""
    boot(client)
    first = sent(ordered(world, client))
    Command.objects.update(status=CommandStatus.SUCCEEDED)
    monkeypatch.setattr(Book, "note", lambda *_: first.envelope.sequence)
    second = ordered(world, client)
    with pytest.raises(IntegrityError, match="was given before"), transaction.atomic():
        tasks.send_order(str(second.order_id))
    second.refresh_from_db()
    assert (second.status, signed(second)) == (CommandStatus.QUEUED, False)


def test_a_task_delivered_twice_changes_nothing(world: World, client: Client) -> None:
    boot(client)
    command = sent(ordered(world, client))
    before = Envelope.objects.values().get()
    sent(command)
    tasks.send_due()
    assert Envelope.objects.values().get() == before
    assert AuditEntry.objects.filter(action="commands.signed").count() == 1


@pytest.mark.parametrize("status", [None, *(one for one in SessionStatus if one != SessionStatus.OPEN)])
def test_a_client_without_an_open_session_gets_nothing_and_the_reason_says_so(
    world: World, client: Client, status: SessionStatus | None
) -> None:
    if status:
        boot(client)
        BootSession.objects.update(status=status)
    command = sent(ordered(world, client))
    assert (command.status, command.reason) == (CommandStatus.FAILED, "the client is not connected")
    assert not signed(command)
    assert command.finished_at is not None
    assert not HomeRestore.objects.exists(), "no home was touched"


def test_what_is_past_its_time_is_not_sent(world: World, client: Client) -> None:
    boot(client)
    command = ordered(world, client)
    Command.objects.update(expires_at=timezone.now() - timedelta(milliseconds=1))
    assert (sent(command).status, command.reason) == (CommandStatus.EXPIRED, "not sent in time")
    assert not AuditEntry.objects.filter(action="commands.signed").exists()


def test_a_cycle_without_a_template_fails_and_a_restart_does_not_need_one(world: World, client: Client) -> None:
    boot(client)
    BootSession.objects.update(release=None)
    command = sent(ordered(world, client))
    assert (command.status, command.reason) == (
        CommandStatus.FAILED,
        "its release is gone, and with it the template",
    )
    assert sent(ordered(world, client, Verb.RESTART)).status == CommandStatus.SENT


def test_what_was_taken_back_is_not_sent(world: World, client: Client) -> None:
    boot(client)
    command = ordered(world, client)
    services.cancel(command, world.vera)
    assert sending.send(Command.objects.all()) == 0
    assert sent(command).status == CommandStatus.CANCELLED
    assert not AuditEntry.objects.filter(action="commands.signed").exists()


def test_one_that_cannot_be_sent_holds_up_no_other(world: World, client: Client) -> None:
    away = make_client(world.clubroom, "52:54:00:00:00:02")
    boot(client)
    order = services.order(Verb.CYCLE, [away, client], "why", world.vera)
    tasks.send_order(str(order.pk))
    assert dict(order.commands.values_list("client__name", "status")) == {"pc-01": "sent", "pc-02": "failed"}


def test_without_its_key_the_sender_says_what_is_missing_and_the_order_waits(
    world: World, client: Client, settings: Settings
) -> None:
    boot(client)
    command = ordered(world, client)
    settings.COMMAND_KEY = ""
    forget()
    with pytest.raises(SiteError, match=r"This process has no command key.*FLEET_COMMAND_KEY.*`manage\.py keys`"):
        tasks.send_order(str(command.order_id))
    command.refresh_from_db()
    assert command.status == CommandStatus.QUEUED


@pytest.fixture(scope="module")
def queue() -> Iterator[str]:
    with redis_server() as service:
        yield service.url


def test_one_nudge_names_all_clients_of_an_order(world: World, client: Client, settings: Settings, queue: str) -> None:
    settings.REDIS_URL = queue
    forget()
    other = make_client(world.clubroom, "52:54:00:00:00:02")
    for one in (client, other):
        boot(one)
    with redis.Redis.from_url(queue) as hints, hints.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe(sending.CHANNEL)
        channel.get_message(timeout=5)
        tasks.send_order(str(services.order(Verb.CYCLE, [client, other], "why", world.vera).pk))
        message = channel.get_message(timeout=5)
        assert message is not None
        assert str(client.pk) in message["data"].decode()
        assert str(other.pk) in message["data"].decode()
        assert channel.get_message(timeout=0.1) is None
    sending.connection().close()


def test_a_command_is_sent_although_nobody_can_be_nudged(
    world: World, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    boot(client)
    assert sent(ordered(world, client)).status == CommandStatus.SENT
    assert "the gateway finds the commands at its next sweep" in caplog.text


def test_what_is_not_in_the_protocol_fails_and_holds_up_no_other(world: World, client: Client) -> None:
    """Somebody wrote it into the database."""
    other = make_client(world.clubroom, "52:54:00:00:00:02")
    for one in (client, other):
        boot(one)
    BootSession.objects.update(protocol=2)
    bad, good = ordered(world, client), ordered(world, other)
    Order.objects.filter(pk=bad.order_id).update(args={"shell": "rm -rf /"})
    tasks.send_due()
    for command in (bad, good):
        command.refresh_from_db()
    assert (bad.status, bad.reason, signed(bad)) == (CommandStatus.FAILED, "it is not in the protocol", False)
    assert good.status == CommandStatus.SENT
