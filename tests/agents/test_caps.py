"""Caps, the ceiling, second persons and the freeze: what the sender lets through, and that nothing lets more through."""

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.utils import timezone
from pytest_django.fixtures import Settings

from agents import caps, freezing, sending, services, tasks
from agents.book import Book
from agents.models import Cap, Command, CommandStatus, Freeze, Order, Verb
from fleet.exceptions import Forbidden, OperatorError, SiteError, WrongState
from fleet.models import AuditEntry, Client
from fleet.roles import Role
from fleet.signing import Signer
from tests.agents.boots import boot, make_release
from tests.services import celery_sends_to
from tests.trust.forging import remove_signed
from tests.world import World, make_client, make_world, member, person


@pytest.fixture
def clients(world: World, keys: Path) -> list[Client]:
    make_release(world.gamer)
    made = [make_client(world.clubroom, f"52:54:00:00:00:{number:02x}") for number in range(1, 7)]
    for client in made:
        boot(client)
    return made


@pytest.fixture
def oda(world: World) -> User:
    """Another organiser of the club room."""
    oda = person("oda")
    member(oda, world.clubroom, Role.ORGANISER)
    return oda


def sent() -> int:
    """How many are sent after the sender has looked once more."""
    tasks.send_due()
    return Command.objects.exclude(status=CommandStatus.QUEUED).count()


def minutes_later(settings: Settings) -> None:
    """As if the sender had signed all that more than a minute ago."""
    with sqlite3.connect(settings.SENDER_BOOK) as book:
        book.execute("UPDATE signed SET at = at - 61")


def test_no_more_a_minute_than_the_cap_and_the_rest_in_the_next(
    world: World, clients: list[Client], settings: Settings
) -> None:
    Cap.objects.create(site=world.clubroom, verb=Verb.CYCLE, per_minute=4)
    order = services.order(Verb.CYCLE, clients, "all", world.vera)
    assert sent() == 4
    assert sent() == 4
    assert services.order(
        Verb.RESTART, clients[:0] or [make_client(world.clubroom, "52:54:00:00:00:99")], "x", world.vera
    )
    minutes_later(settings)
    tasks.send_due()
    assert order.commands.filter(status=CommandStatus.SENT).count() == 6


def test_no_more_at_once_than_the_cap_until_some_have_ended(world: World, clients: list[Client]) -> None:
    Cap.objects.create(site=world.clubroom, verb=Verb.POWEROFF, at_once=2)
    services.order(Verb.POWEROFF, clients, "end", world.vera)
    assert sent() == 2
    Command.objects.filter(status=CommandStatus.SENT).update(status=CommandStatus.ACCEPTED)
    assert sent() == 2, "accepted is still under way"
    Command.objects.filter(pk=Command.objects.filter(status=CommandStatus.ACCEPTED)[0].pk).update(status="lost")
    assert sent() == 3


def test_a_cap_is_of_its_verb_and_its_site(world: World, clients: list[Client]) -> None:
    Cap.objects.create(site=world.clubroom, verb=Verb.RESTART, per_minute=1)
    Cap.objects.create(site=world.school, verb=Verb.CYCLE, per_minute=1)
    services.order(Verb.CYCLE, clients, "all", world.vera)
    assert sent() == 6


def test_what_a_cap_makes_wait_does_not_expire_for_it(world: World, clients: list[Client], settings: Settings) -> None:
    Cap.objects.create(site=world.clubroom, verb=Verb.CYCLE, per_minute=2)
    order = services.order(Verb.CYCLE, clients, "all", world.vera)
    assert caps.takes_s(world.clubroom, Verb.CYCLE, 6) == 120
    life = (order.commands.all()[0].expires_at - order.ordered_at).total_seconds()
    assert settings.COMMAND_LIFE + 119 < life < settings.COMMAND_LIFE + 125
    assert caps.takes_s(world.clubroom, Verb.RESTART, 6) == 0


def test_beyond_the_cap_nothing_is_signed_before_another_organiser_says_so(
    world: World, clients: list[Client], oda: User
) -> None:
    Cap.objects.create(site=world.clubroom, verb=Verb.CYCLE, per_minute=2)
    order = services.order(Verb.CYCLE, clients, "finals", world.otto, beyond_cap=True)
    assert sent() == 0
    for person_, why in (
        (world.otto, "Nobody approves their own order"),
        (world.vera, "may not"),
        (world.mallory, "may not"),
    ):
        with pytest.raises(Forbidden, match=why):
            services.approve(order, person_)
    assert sent() == 0
    services.approve(order, oda)
    assert sent() == 6
    with pytest.raises(WrongState, match="awaits no approval"):
        services.approve(order, oda)
    entry = AuditEntry.objects.get(action="order.approved")
    assert (entry.actor, entry.detail["verb"]) == ("oda", "cycle")


def test_an_order_within_the_cap_awaits_no_approval(world: World, clients: list[Client], oda: User) -> None:
    with pytest.raises(WrongState, match="awaits no approval"):
        services.approve(services.order(Verb.CYCLE, clients, "x", world.otto), oda)


def test_the_database_knows_no_order_that_was_approved_by_who_gave_it(world: World, clients: list[Client]) -> None:
    order = services.order(Verb.CYCLE, clients, "x", world.otto, beyond_cap=True)
    with pytest.raises(IntegrityError, match="order_approved_by_another"), transaction.atomic():
        Order.objects.filter(pk=order.pk).update(approved_by=world.otto)


def test_nobody_gets_beyond_the_ceiling(world: World, clients: list[Client], oda: User, settings: Settings) -> None:
    """Not with an approval, not by taking the rows away, not by another site, not by a clock that was set back."""
    settings.CEILING = {**settings.CEILING, "cycle": 3}
    order = services.order(Verb.CYCLE, clients, "x", world.otto, beyond_cap=True)
    services.approve(order, oda)
    assert sent() == 3
    remove_signed()
    tasks.send_due()
    assert not Command.objects.filter(status=CommandStatus.SENT).exists()
    with sqlite3.connect(settings.SENDER_BOOK) as book:
        book.execute("UPDATE signed SET at = at + 3600")
    tasks.send_due()
    assert not Command.objects.filter(status=CommandStatus.SENT).exists()
    with sqlite3.connect(settings.SENDER_BOOK) as book:
        book.execute("UPDATE signed SET at = at - 3661")
    tasks.send_due()
    assert Command.objects.filter(status=CommandStatus.SENT).count() == 3


def test_one_site_that_waits_keeps_no_other_from_being_served(world: World, clients: list[Client]) -> None:
    """Nor one verb the other: the oldest commands may be those that must wait."""
    Cap.objects.create(site=world.clubroom, verb=Verb.CYCLE, per_minute=1)
    services.order(Verb.CYCLE, clients[:5], "all", world.vera)
    last = services.order(Verb.RESTART, clients[5:], "one", world.vera)
    tasks.send_due()
    assert last.commands.get().status == CommandStatus.SENT


def test_a_book_that_cannot_be_opened_lets_nothing_through(
    world: World, clients: list[Client], settings: Settings, tmp_path: Path
) -> None:
    services.order(Verb.CYCLE, clients, "x", world.vera)
    settings.SENDER_BOOK = tmp_path / "rubbish"
    settings.SENDER_BOOK.write_text("this is no book" * 100)
    with pytest.raises(SiteError, match=r"The sender's book .* cannot be used.*FLEET_SENDER_BOOK"):
        tasks.send_due()
    assert not Command.objects.exclude(status=CommandStatus.QUEUED).exists()


def test_the_book_is_for_its_owner_alone(world: World, clients: list[Client], settings: Settings) -> None:
    services.order(Verb.CYCLE, clients[:1], "x", world.vera)
    tasks.send_due()
    assert settings.SENDER_BOOK.stat().st_mode & 0o077 == 0


def test_the_book_counts_by_site_and_keeps_the_youngest_heads(tmp_path: Path) -> None:
    with Book.at(tmp_path / "book") as book:
        book.note("cycle", 1, 5)
        book.note("cycle", 2, 2)
        book.note("restart", 1, 1)
        assert (book.signed("cycle"), book.signed("cycle", 1), book.signed("poweroff")) == (7, 5, 0)
        for sequence, digest in ((4, "d"), (3, "c")):
            book.saw_head("site-1", sequence, digest)
    with Book.at(tmp_path / "book") as book:
        assert book.heads() == {"site-1": (4, "d")}
        assert book.signed("cycle") == 7


def test_numbers_rise_also_where_the_clock_goes_back_or_the_book_is_lost(tmp_path: Path) -> None:
    with time_machine.travel(datetime(2026, 5, 1, tzinfo=UTC), tick=False) as clock:
        with Book.at(tmp_path / "book") as book:
            first = book.note("cycle", 1, 5)
            assert book.note("restart", 2, 1) == first + 5
        clock.shift(-3600)
        with Book.at(tmp_path / "book") as book:
            assert book.note("cycle", 1, 1) == first + 6
        clock.shift(3601)
        with Book.at(tmp_path / "another") as book:
            assert book.note("cycle", 1, 1) > first + 6


def test_while_a_site_is_frozen_nothing_of_it_is_signed_and_then_it_goes_on(
    world: World, clients: list[Client]
) -> None:
    row = freezing.freeze(world.clubroom, "  smoke in the hall ", world.vera)
    services.order(Verb.CYCLE, clients, "x", world.vera)
    assert sent() == 0
    with pytest.raises(Forbidden, match="You may not lift the freeze of Club room"):
        freezing.lift(row, world.vera)
    freezing.lift(row, world.otto)
    assert sent() == 6
    with pytest.raises(WrongState, match="was lifted already"):
        freezing.lift(row, world.otto)
    actions = AuditEntry.objects.filter(action__startswith="signing").order_by("sequence")
    assert [(entry.action, entry.actor) for entry in actions] == [
        ("signing.frozen", "vera"),
        ("signing.resumed", "otto"),
    ]


def test_a_freeze_of_all_sites_is_a_superusers(world: World, clients: list[Client]) -> None:
    with pytest.raises(Forbidden, match="You may not freeze all sites"):
        freezing.freeze(None, "x", world.otto)
    root = User.objects.create_superuser("root")
    row = freezing.freeze(None, "power cut", root)
    services.order(Verb.CYCLE, clients, "x", world.vera)
    assert sent() == 0
    with pytest.raises(Forbidden):
        freezing.lift(row, world.otto)
    freezing.lift(row, root)
    assert sent() == 6


def test_a_freeze_has_a_reason_and_stands_once(world: World) -> None:
    with pytest.raises(OperatorError, match="A freeze needs a reason"):
        freezing.freeze(world.clubroom, "  ", world.vera)
    with pytest.raises(Forbidden):
        freezing.freeze(world.clubroom, "x", world.mallory)
    freezing.freeze(world.clubroom, "x", world.vera)
    with pytest.raises(WrongState, match="Club room is frozen already"):
        freezing.freeze(world.clubroom, "y", world.vera)
    assert freezing.standing(world.school) is None
    assert Freeze.objects.count() == 1


def test_what_waits_in_a_freeze_expires_in_its_time(world: World, clients: list[Client]) -> None:
    freezing.freeze(world.clubroom, "x", world.vera)
    services.order(Verb.CYCLE, clients, "x", world.vera)
    Command.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    tasks.tick()
    assert set(Command.objects.values_list("status", flat=True)) == {"expired"}


@pytest.mark.parametrize(
    ("verb", "args", "message"),
    [
        (Verb.CYCLE, {"seconds": 5}, "Cycle takes no seconds"),
        (Verb.CYCLE, {"text": "soon"}, "A warning needs its time"),
        (Verb.CYCLE, {"warn_s": 3601}, "warn_s is 3601. It is a whole number of 1 to 3600."),
        (Verb.CYCLE, {"warn_s": True}, "warn_s is True"),
        (Verb.CYCLE, {"warn_s": 60, "more": 13}, "more is 13"),
        (Verb.CYCLE, {"warn_s": 60, "text": "a\x1b[2J"}, "The text cannot be shown"),
        (Verb.CYCLE, {"warn_s": 60, "text": "x" * 301}, "at most 300 characters"),
        (Verb.CAPTURE, {"warn_s": 60}, "takes no warn_s"),
        (Verb.MESSAGE, {}, "There is no message"),
        (Verb.MESSAGE, {"text": "  "}, "There is no message"),
        (Verb.MESSAGE, {"text": "hi", "warn_s": 5}, "takes no warn_s"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    world: World, clients: list[Client], verb: Verb, args: dict[str, object], message: str
) -> None:
    with pytest.raises(OperatorError) as caught:
        services.order(verb, clients[:1], "x", world.otto, args=args)
    assert message in str(caught.value)
    assert not Order.objects.exists()


def test_a_relay_is_not_ordered_by_people(world: World, clients: list[Client]) -> None:
    with pytest.raises(OperatorError, match="'wake-relay' is not an order"):
        services.order("wake-relay", clients[:1], "x", world.otto)


def test_a_local_hold_is_passed_over_by_organisers_alone(world: World, clients: list[Client]) -> None:
    with pytest.raises(Forbidden, match="You may not pass over a local hold at Club room"):
        services.order(Verb.RESTART, clients[:1], "x", world.vera, force=True)
    services.order(Verb.RESTART, clients[:1], "x", world.otto, force=True)
    assert AuditEntry.objects.get(action="order").detail["force"] is True


def test_an_old_daemon_is_not_sent_what_it_does_not_know(world: World, clients: list[Client]) -> None:
    services.order(Verb.CYCLE, clients[:1], "x", world.vera, args={"warn_s": 60})
    services.order(Verb.MESSAGE, clients[1:2], "x", world.vera, args={"text": "hi"})
    tasks.send_due()
    reasons = sorted(Command.objects.values_list("status", "reason"))
    assert reasons == [
        ("failed", "its daemon speaks protocol 1, which knows no messages: boot it with a newer version"),
        ("failed", "its daemon speaks protocol 1, which knows no warnings and holds: boot it with a newer version"),
    ]


# --- several groups of one order ----------------------------------------------------------------------------------


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "FIRST_GROUP", 2)
    monkeypatch.setattr(sending, "GROUP", 2)


@pytest.fixture
def hall(transactional_db: None, small_groups: None, keys: Path) -> Iterator[tuple[World, list[Client]]]:
    """Seven PCs whose rows are committed: on PostgreSQL one group of them is signed while the next is prepared."""
    world = make_world()
    make_release(world.gamer)
    made = [make_client(world.clubroom, f"52:54:00:00:00:{number:02x}") for number in range(1, 8)]
    for client in made:
        boot(client)
    with celery_sends_to("redis://127.0.0.1:1/0"):
        yield world, made


@pytest.mark.parametrize(("bound", "most"), [("at_once", 5), ("at_once", 2), ("per_minute", 3)])
def test_a_cap_holds_over_groups_and_all_it_allows_is_sent(
    hall: tuple[World, list[Client]], bound: str, most: int
) -> None:
    world, clients = hall
    Cap.objects.create(site=world.clubroom, verb=Verb.CYCLE, **{bound: most})
    order = services.order(Verb.CYCLE, clients, "x", world.vera)
    assert sending.send(order.commands.all()) == most
    assert order.commands.filter(status=CommandStatus.SENT).count() == most
    assert order.commands.filter(status=CommandStatus.QUEUED, envelope=None).count() == 7 - most


def test_what_is_prepared_is_not_signed_after_a_freeze(
    hall: tuple[World, list[Client]], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, clients = hall
    order = services.order(Verb.CYCLE, clients, "x", world.vera)
    prepare, prepared = sending._prepare, []

    def then_somebody_freezes(*args: Any) -> Any:
        prepared.append(prepare(*args))
        if len(prepared) == 2:
            freezing.freeze(world.clubroom, "smoke", world.vera)
        return prepared[-1]

    monkeypatch.setattr(sending, "_prepare", then_somebody_freezes)
    assert sending.send(order.commands.all()) <= 2, "the first group may have been signed before"
    assert len(prepared) == 2
    assert order.commands.filter(status=CommandStatus.QUEUED).count() >= 5
    freezing.lift(Freeze.objects.get(), world.otto)
    monkeypatch.undo()
    sending.send(order.commands.all())
    assert not order.commands.filter(status=CommandStatus.QUEUED).exists()


def test_where_signing_breaks_nothing_is_lost_and_the_rest_goes_later(
    hall: tuple[World, list[Client]], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, clients = hall
    order = services.order(Verb.CYCLE, clients, "x", world.vera)
    signed, sign = [], Signer.sign

    def breaks(self: Signer, body: bytes) -> bytes:
        signed.append(body)
        if len(signed) == 3:
            raise MemoryError
        return sign(self, body)

    with monkeypatch.context() as patch:
        patch.setattr(Signer, "sign", breaks)
        with pytest.raises(MemoryError):
            sending.send(order.commands.all())
    assert order.commands.filter(status=CommandStatus.SENT).count() == 2
    assert sending.send(order.commands.all()) == 5
    numbers = [*order.commands.values_list("envelope__sequence", flat=True)]
    assert len(set(numbers)) == 7
    assert len(signed) == 3
