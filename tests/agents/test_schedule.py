"""What the clock ends: sessions that fell silent, boots that take too long, commands that nobody proves."""

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import redis
import time_machine
from django.utils import timezone
from pytest_django.fixtures import Settings

from agents import schedule, services
from agents.daemon.link import CAP_S
from agents.models import BootSession, Command, CommandStatus, HomeRestore, SessionStatus, Verb
from fleet.alive import GATEWAY_UP
from fleet.models import Client, ClientState
from tests.agents.boots import boot, make_release, plan_of, token_of
from tests.agents.conftest import forget
from tests.agents.restores import make_command
from tests.services import Service, redis_server
from tests.world import World, make_client


@pytest.fixture(scope="module")
def queue() -> Iterator[Service]:
    with redis_server() as service:
        yield service


@pytest.fixture
def hints(queue: Service, keys: Path, settings: Settings) -> Iterator[redis.Redis]:
    """The Redis in which the gateway says since when it listens: empty."""
    settings.REDIS_URL = queue.url
    forget()
    with redis.Redis.from_url(queue.url) as connection:
        connection.flushall()
        yield connection


@pytest.fixture
def client(world: World, hints: redis.Redis) -> Client:
    make_release(world.gamer)
    return make_client(world.clubroom)


def after(seconds: float) -> None:
    """A tick ``seconds`` from now."""
    with time_machine.travel(timezone.now() + timedelta(seconds=seconds), tick=False):
        schedule.tick()


def state(client: Client) -> tuple[str, str]:
    client.refresh_from_db()
    return client.state, BootSession.objects.filter(client=client).latest("planned_at").status


def listens_since(hints: redis.Redis, seconds: float) -> None:
    hints.set(GATEWAY_UP, str(time.time() - seconds))


def test_who_is_silent_for_too_long_is_lost_and_stays_so(client: Client, hints: redis.Redis) -> None:
    listens_since(hints, 1000)
    boot(client)
    after(40)
    assert state(client) == (ClientState.BOOTING, SessionStatus.OPEN)
    for _ in range(2):
        after(46)
        assert state(client) == (ClientState.LOST, SessionStatus.LOST)


@pytest.mark.parametrize("since", [None, 60], ids=["the gateway is away", "it was restarted a minute ago"])
def test_nobody_is_lost_while_nobody_could_have_heard_them(
    client: Client, hints: redis.Redis, since: float | None
) -> None:
    if since is not None:
        listens_since(hints, since - 50)
    boot(client)
    after(50)
    assert state(client) == (ClientState.BOOTING, SessionStatus.OPEN)


def test_after_a_restart_of_the_gateway_silence_counts_once_every_daemon_had_time_to_come_back(
    client: Client, hints: redis.Redis
) -> None:
    boot(client)
    listens_since(hints, 0)
    after(CAP_S - 5)
    assert state(client) == (ClientState.BOOTING, SessionStatus.OPEN)
    after(CAP_S + 5)
    assert state(client) == (ClientState.LOST, SessionStatus.LOST)


def test_nobody_is_lost_while_redis_is_away(client: Client, settings: Settings) -> None:
    boot(client)
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    forget()
    after(1000)
    assert state(client) == (ClientState.BOOTING, SessionStatus.OPEN)


def test_a_boot_that_takes_too_long_is_lost(client: Client, settings: Settings) -> None:
    plan_of(client)
    after(settings.BOOT_LIMIT - 5)
    assert state(client) == (ClientState.BOOTING, SessionStatus.BOOTING)
    after(settings.BOOT_LIMIT + 5)
    assert state(client) == (ClientState.LOST, SessionStatus.LOST)


def test_a_boot_that_stopped_before_it_asked_for_a_plan_is_lost(client: Client, settings: Settings) -> None:
    token_of(client.mac)
    after(settings.BOOT_LIMIT - 5)
    client.refresh_from_db()
    assert client.state == ClientState.BOOTING
    after(settings.BOOT_LIMIT + 5)
    client.refresh_from_db()
    assert client.state == ClientState.LOST


def test_silence_after_an_accepted_power_down_is_what_was_asked_for(
    world: World, client: Client, hints: redis.Redis
) -> None:
    listens_since(hints, 1000)
    command = make_command(world, client, Verb.POWEROFF)
    Command.objects.update(accepted_at=timezone.now())
    after(46)
    command.refresh_from_db()
    assert (command.status, command.reason) == (CommandStatus.SUCCEEDED, "silent since it accepted")
    assert state(client) == (ClientState.OFF, SessionStatus.CLOSED)


@pytest.mark.parametrize("status", [CommandStatus.QUEUED, CommandStatus.SENT])
def test_what_nobody_accepts_in_time_expires_and_leaves_no_restore(
    world: World, client: Client, settings: Settings, status: CommandStatus
) -> None:
    command = services.order(Verb.CYCLE, [client], "next player", world.vera).commands.get()
    Command.objects.update(status=status)
    after(settings.COMMAND_LIFE - 1)
    command.refresh_from_db()
    assert command.status == status
    after(settings.COMMAND_LIFE)
    command.refresh_from_db()
    assert (command.status, command.reason) == (CommandStatus.EXPIRED, "nobody accepted it in time")
    assert not HomeRestore.objects.exists()


@pytest.mark.parametrize(("verb", "limit"), [(Verb.CYCLE, "COMMAND_LIFE"), (Verb.RESTART, "BOOT_LIMIT")])
def test_what_was_accepted_and_is_never_proved_is_lost(
    world: World, client: Client, settings: Settings, hints: redis.Redis, verb: Verb, limit: str
) -> None:
    seconds = getattr(settings, limit)
    command = make_command(world, client, verb)
    Command.objects.update(accepted_at=timezone.now())
    after(seconds + 1)
    command.refresh_from_db()
    assert command.status == CommandStatus.ACCEPTED, "no gateway could have heard a proof"
    listens_since(hints, 1000)
    after(seconds - 1)
    command.refresh_from_db()
    assert command.status == CommandStatus.ACCEPTED
    for _ in range(2):
        after(seconds + 1)
        command.refresh_from_db()
        assert (command.status, command.reason) == (
            CommandStatus.LOST,
            f"accepted, but without a proof within {seconds} s",
        )
    assert HomeRestore.objects.filter(result="lost").count() == (verb == Verb.CYCLE)
