"""Clients that run an older version are counted, and restarted a few at a time while nobody uses them."""

from pathlib import Path

import pytest
from django.db import IntegrityError, transaction

from agents import attendance, rollouts
from agents.models import BootSession, Command, CommandStatus, Rollout, RolloutStatus, SessionStatus, Verb
from fleet.exceptions import Forbidden, OperatorError, WrongState
from fleet.models import AuditEntry, Client, ClientState, Membership
from fleet.transitions import move
from images import releasing, services
from images.models import ImageVersion, Release
from tests.agents.boots import boot, make_release
from tests.agents.restores import make_envelope
from tests.images.versions import make_version
from tests.world import World, make_client


@pytest.fixture
def stable(world: World, keys: Path) -> Release:
    return make_release(world.gamer)


@pytest.fixture
def pcs(world: World, stable: Release) -> list[Client]:
    """Five PCs that run the stable version: one is in use."""
    found = [make_client(world.clubroom, f"52:54:00:00:00:0{n}", client_class=world.gamer) for n in range(1, 6)]
    for client in found:
        attendance.says_state(boot(client).pk, "in-use" if client == found[4] else "ready")
    return found


@pytest.fixture
def fresh(world: World, pcs: list[Client], stable: Release) -> ImageVersion:
    version = make_version(stable.version.image)
    services.release(version, world.gamer, world.otto)
    return version


def restarting(row: Rollout) -> list[str]:
    commands = Command.objects.filter(order__rollout=row, status__in=Command.OPEN).order_by("client__name")
    return [command.client.name for command in commands]


def comes_back(client: Client, state: str = "ready") -> None:
    """The restart works: a new boot, which ends the command by its evidence."""
    for command in Command.objects.filter(client=client, status=CommandStatus.QUEUED):
        session = BootSession.objects.get(client=client, status=SessionStatus.OPEN)
        make_envelope(command, session)
        move(command, CommandStatus.SENT)
        move(command, CommandStatus.ACCEPTED)
    attendance.says_state(boot(client).pk, state)


def test_who_runs_an_older_version_is_counted(world: World, pcs: list[Client], fresh: ImageVersion) -> None:
    assert rollouts.behind(world.gamer) == pcs
    comes_back(pcs[0])
    assert rollouts.behind(world.gamer) == pcs[1:]
    Client.objects.filter(pk=pcs[1].pk).update(client_class=world.contest)
    assert rollouts.behind(world.gamer) == pcs[2:]
    BootSession.objects.filter(client=pcs[2]).update(status=SessionStatus.LOST)
    assert rollouts.behind(world.gamer) == pcs[3:]


def test_of_a_canary_only_its_clients_are_behind(world: World, pcs: list[Client], stable: Release) -> None:
    version = make_version(stable.version.image)
    releasing.start(version, world.gamer, world.otto, clients=pcs[:2])
    assert rollouts.behind(world.gamer) == pcs[:2]


def test_so_many_at_once_restart_and_the_next_ones_when_those_are_back(
    world: World, pcs: list[Client], fresh: ImageVersion
) -> None:
    row = rollouts.start(world.gamer, world.vera, at_once=2)
    rollouts.step()
    rollouts.step()
    assert restarting(row) == ["pc-01", "pc-02"]
    assert {command.verb for command in Command.objects.all()} == {Verb.RESTART}
    comes_back(pcs[0], "booting")
    rollouts.step()
    assert restarting(row) == ["pc-02"], "one that boots is still on its way"
    attendance.says_state(BootSession.objects.get(client=pcs[0], status=SessionStatus.OPEN).pk, "ready")
    rollouts.step()
    assert restarting(row) == ["pc-02", "pc-03"]
    comes_back(pcs[1])
    comes_back(pcs[2])
    rollouts.step()
    assert restarting(row) == ["pc-04"]
    comes_back(pcs[3])
    rollouts.step()
    row.refresh_from_db()
    assert row.status == RolloutStatus.RUNNING, "one PC is in use: it is waited for"
    assert restarting(row) == []
    session = BootSession.objects.get(client=pcs[4], status=SessionStatus.OPEN)
    attendance.says_state(session.pk, "ready")
    rollouts.step()
    assert restarting(row) == ["pc-05"]
    comes_back(pcs[4])
    rollouts.step()
    row.refresh_from_db()
    assert (row.status, row.outcome) == (RolloutStatus.DONE, "5 restarted")
    assert list(
        AuditEntry.objects.filter(action__startswith="rollout.").order_by("pk").values_list("action", "actor")
    ) == [
        ("rollout.started", "vera"),
        ("rollout.done", "clock"),
    ]


def test_a_tenth_is_restarted_at_once_unless_somebody_says_otherwise(
    world: World, pcs: list[Client], fresh: ImageVersion
) -> None:
    assert rollouts.start(world.gamer, world.vera).at_once == 1
    with pytest.raises(WrongState, match="being restarted already"):
        rollouts.start(world.gamer, world.otto)
    with pytest.raises(IntegrityError), transaction.atomic():
        Rollout.objects.create(client_class=world.gamer, reason="again")


def test_it_stops_when_those_restarted_do_not_come_back(world: World, pcs: list[Client], fresh: ImageVersion) -> None:
    row = rollouts.start(world.gamer, world.vera, at_once=1)
    rollouts.step()
    Client.objects.filter(pk=pcs[0].pk).update(state=ClientState.LOST)
    rollouts.step()
    row.refresh_from_db()
    assert (row.status, row.outcome) == (
        RolloutStatus.STOPPED,
        "stopped by itself: A1 (pc-01) did not come back",
    )
    assert Command.objects.count() == 1


def test_a_person_stops_it_and_nothing_more_is_sent(world: World, pcs: list[Client], fresh: ImageVersion) -> None:
    row = rollouts.start(world.gamer, world.vera, at_once=1)
    rollouts.step()
    with pytest.raises(Forbidden):
        rollouts.stop(row, world.mallory)
    rollouts.stop(row, world.otto)
    comes_back(pcs[0])
    rollouts.step()
    assert Command.objects.count() == 1
    with pytest.raises(WrongState):
        rollouts.stop(row, world.otto)


def test_a_busy_client_is_left_alone(world: World, pcs: list[Client], fresh: ImageVersion) -> None:
    from agents import services as orders

    orders.order(Verb.CYCLE, pcs[:3], "next person", world.vera)
    row = rollouts.start(world.gamer, world.vera, at_once=5)
    rollouts.step()
    assert restarting(row) == ["pc-04"]


def test_who_asked_and_may_no_more_ends_it(world: World, pcs: list[Client], fresh: ImageVersion) -> None:
    row = rollouts.start(world.gamer, world.vera)
    Membership.objects.filter(user=world.vera).delete()
    rollouts.step()
    row.refresh_from_db()
    assert row.status == RolloutStatus.STOPPED
    assert not Command.objects.exists()


def test_what_cannot_be_rolled_out_is_refused(world: World, pcs: list[Client], stable: Release) -> None:
    with pytest.raises(WrongState, match="No client of Gamer runs an older version"):
        rollouts.start(world.gamer, world.vera)
    services.release(make_version(stable.version.image), world.gamer, world.otto)
    with pytest.raises(Forbidden):
        rollouts.start(world.gamer, world.mallory)
    for number in (-1, 1001):
        with pytest.raises(OperatorError, match="at once"):
            rollouts.start(world.gamer, world.vera, at_once=number)
