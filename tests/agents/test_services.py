"""Orders: who may give which, what is refused and how it is said, two at once, and that none is lost with its message."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.db import connection

from agents import services, tasks
from agents.models import Command, CommandStatus, Order, Verb
from fleet.exceptions import Forbidden, OperatorError, WrongState
from fleet.models import AuditEntry, Client
from fleet.roles import Role
from tests.agents.boots import boot, make_release
from tests.services import celery_sends_to
from tests.world import World, make_client, make_world, member, person


@pytest.fixture
def client(world: World) -> Client:
    return make_client(world.clubroom)


def nothing_was_written() -> bool:
    return not Order.objects.exists() and not Command.objects.exists() and not AuditEntry.objects.exists()


def test_an_order_makes_a_command_for_each_client_and_an_audit_entry(world: World, client: Client) -> None:
    other = make_client(world.clubroom, "52:54:00:00:00:02")
    order = services.order(Verb.CYCLE, [client, other, client], "  next player ", world.vera)
    assert (order.reason, order.ordered_by, order.site) == ("next player", world.vera, world.clubroom)
    assert {(c.client, c.status, c.verb) for c in order.commands.all()} == {
        (one, CommandStatus.QUEUED, Verb.CYCLE) for one in (client, other)
    }
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.actor, entry.site, entry.subject_id) == ("order", "vera", world.clubroom, str(order.pk))
    assert entry.detail["reason"] == "next player"
    assert sorted(entry.detail["clients"]) == ["A1 (pc-01)", "A2 (pc-02)"]


@pytest.mark.parametrize(
    ("verb", "count", "reason", "message"),
    [
        (
            "explode",
            1,
            "why",
            "'explode' is not an order. Choose one of restart, poweroff, cycle, capture, message, wake.",
        ),
        (Verb.CYCLE, 0, "why", "No client is chosen. Choose at least one."),
        (Verb.CYCLE, 1, " \n", "An order needs a reason."),
        (Verb.CYCLE, 1, "x" * 201, "The reason is too long. Say it in 200 characters."),
    ],
)
def test_what_makes_no_order_is_said_and_writes_nothing(
    world: World, client: Client, verb: str, count: int, reason: str, message: str
) -> None:
    with pytest.raises(OperatorError) as caught:
        services.order(verb, [client][:count], reason, world.vera)
    assert message in str(caught.value)
    assert nothing_was_written()


def test_a_reason_of_200_characters_is_taken(world: World, client: Client) -> None:
    assert len(services.order(Verb.CYCLE, [client], "x" * 200, world.vera).reason) == 200


def test_one_order_takes_a_thousand_clients_and_no_more(world: World) -> None:
    clients = Client.objects.bulk_create(
        Client(site=world.clubroom, mac=f"52:54:00:00:{n >> 8:02x}:{n & 255:02x}", name=f"pc-{n}") for n in range(1001)
    )
    with pytest.raises(
        OperatorError, match=r"1001 clients are more than one order takes\. Choose 1000 or fewer, or make"
    ):
        services.order(Verb.CYCLE, clients, "all", world.vera)
    assert nothing_was_written()
    assert services.order(Verb.CYCLE, clients[:1000], "all", world.vera).commands.count() == 1000


def test_another_site_is_forbidden_and_named(world: World, client: Client) -> None:
    with pytest.raises(Forbidden) as caught:
        services.order(Verb.RESTART, [client], "mine now", world.mallory)
    assert str(caught.value) == "You may not order anything of A1 (pc-01). Ask a volunteer of that site."
    assert caught.value.site == world.clubroom
    assert nothing_was_written()


def test_a_viewer_and_a_stranger_may_not_order(world: World, client: Client) -> None:
    viewer = person("viktor")
    member(viewer, world.clubroom, Role.VIEWER)
    gone = person("gustav")
    member(gone, world.clubroom, Role.SITE_ADMIN)
    User.objects.filter(pk=gone.pk).update(is_active=False)
    for actor in (viewer, AnonymousUser(), User.objects.get(pk=gone.pk)):
        with pytest.raises(Forbidden):
            services.order(Verb.CYCLE, [client], "why", actor)
    assert nothing_was_written()


def test_one_forbidden_client_forbids_the_whole_order(world: World, client: Client) -> None:
    foreign = make_client(world.school, "52:54:00:00:00:09")
    with pytest.raises(Forbidden, match=r"A9 \(pc-09\)"):
        services.order(Verb.CYCLE, [client, foreign], "why", world.vera)
    assert nothing_was_written()


def test_an_order_is_for_one_site(world: World, client: Client) -> None:
    member(world.vera, world.school, Role.VOLUNTEER)
    foreign = make_client(world.school, "52:54:00:00:00:09")
    with pytest.raises(OperatorError, match=r"An order is for clients of one site\. Give one order per site\."):
        services.order(Verb.CYCLE, [client, foreign], "why", world.vera)
    assert nothing_was_written()


@pytest.mark.parametrize("status", Command.OPEN)
def test_a_client_that_is_busy_is_named_with_what_it_does(world: World, client: Client, status: str) -> None:
    free = make_client(world.clubroom, "52:54:00:00:00:02")
    services.order(Verb.CYCLE, [client], "why", world.vera)
    Command.objects.update(status=status)
    with pytest.raises(WrongState, match=r"Still busy: A1 \(pc-01\) \(cycle\)\. Wait until that has ended"):
        services.order(Verb.RESTART, [client, free], "again", world.vera)
    assert Order.objects.count() == Command.objects.count() == AuditEntry.objects.count() == 1


def test_a_client_whose_command_ended_takes_the_next(world: World, client: Client) -> None:
    services.order(Verb.CYCLE, [client], "why", world.vera)
    for status in CommandStatus:
        if status not in Command.OPEN:
            Command.objects.filter(status__in=Command.OPEN).update(status=status)
            services.order(Verb.CYCLE, [client], "again", world.vera)


def test_of_orders_for_one_client_at_the_same_moment_one_wins_and_the_others_leave_nothing(
    transactional_db: None,
) -> None:
    world = make_world()
    client, free = make_client(world.clubroom), make_client(world.clubroom, "52:54:00:00:00:02")
    start, outcomes = threading.Barrier(4), list[object]()

    def give(verb: str) -> None:
        try:
            start.wait()
            outcomes.append(services.order(verb, [free, client], "now", world.vera))
        except Exception as error:
            outcomes.append(error)
        finally:
            connection.close()

    with celery_sends_to("redis://127.0.0.1:1/0"):
        threads = [threading.Thread(target=give, args=(verb,)) for verb in [Verb.CYCLE, Verb.RESTART] * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(isinstance(outcome, Order) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, WrongState) for outcome in outcomes) == 3, outcomes
    assert (Order.objects.count(), Command.objects.count()) == (1, 2)
    assert AuditEntry.objects.filter(action="order").count() == 1


def test_an_order_given_while_redis_is_away_is_kept_and_sent_by_the_clock(
    transactional_db: None, keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world()
    make_release(world.gamer)
    client = make_client(world.clubroom)
    boot(client)
    with celery_sends_to("redis://127.0.0.1:1/0"):
        order = services.order(Verb.RESTART, [client], "why", world.vera)
    assert "Redis is away" in caplog.text
    assert order.commands.get().status == CommandStatus.QUEUED
    tasks.send_due()
    assert order.commands.get().status == CommandStatus.SENT


def test_the_message_goes_out_after_the_commit_and_not_at_all_without(
    world: World, client: Client, django_capture_on_commit_callbacks: Callable[..., object]
) -> None:
    with django_capture_on_commit_callbacks() as callbacks:  # type: ignore[attr-defined]
        services.order(Verb.CYCLE, [client], "why", world.vera)
        with pytest.raises(WrongState):
            services.order(Verb.CYCLE, [client], "again", world.vera)
    sending = [one for one in callbacks if getattr(one, "__module__", "") == "fleet.queue"]
    assert len(sending) == 1


@pytest.mark.parametrize("status", services.CANCELLABLE)
def test_a_command_not_accepted_yet_is_taken_back(world: World, client: Client, status: CommandStatus) -> None:
    command = services.order(Verb.CYCLE, [client], "why", world.vera).commands.get()
    Command.objects.update(status=status)
    services.cancel(command, world.otto)
    assert (command.status, command.reason) == (CommandStatus.CANCELLED, "cancelled by otto")
    assert command.finished_at is not None
    entry = AuditEntry.objects.get(action="command.cancelled")
    assert (entry.actor, entry.subject_id) == ("otto", str(command.pk))


@pytest.mark.parametrize("status", [one for one in CommandStatus if one not in services.CANCELLABLE])
def test_what_is_accepted_or_ended_cannot_be_taken_back(world: World, client: Client, status: CommandStatus) -> None:
    command = services.order(Verb.CYCLE, [client], "why", world.vera).commands.get()
    Command.objects.update(status=status)
    with pytest.raises(WrongState, match=f"cannot become cancelled: it is {status.label.lower()}"):
        services.cancel(command, world.vera)
    assert not AuditEntry.objects.filter(action="command.cancelled").exists()


def test_nobody_takes_back_what_another_site_ordered(world: World, client: Client) -> None:
    order = services.order(Verb.CYCLE, [client], "why", world.vera)
    with pytest.raises(Forbidden, match=r"You may not cancel the cycle of A1 \(pc-01\)\."):
        services.cancel(order.commands.get(), world.mallory)
    with pytest.raises(Forbidden, match="You may not cancel that order"):
        services.cancel_order(order, world.mallory)
    assert order.commands.get().status == CommandStatus.QUEUED


def test_of_an_order_only_what_waits_is_taken_back_and_nothing_twice(world: World, client: Client) -> None:
    clients = [client, *(make_client(world.clubroom, f"52:54:00:00:00:0{n}") for n in (2, 3))]
    order = services.order(Verb.CYCLE, clients, "why", world.vera)
    Command.objects.filter(client=client).update(status=CommandStatus.ACCEPTED)
    Command.objects.filter(client=clients[1]).update(status=CommandStatus.SENT)
    assert services.cancel_order(order, world.vera) == 2
    with pytest.raises(WrongState, match="Nothing of that order waits any more"):
        services.cancel_order(order, world.vera)
    assert sorted(order.commands.values_list("status", flat=True)) == ["accepted", "cancelled", "cancelled"]
