"""The gateway and its database, in this process: groups of writes, and polls that cost none."""

import asyncio
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, transaction
from pytest_django.fixtures import Settings

from agents.gateway.app import Gateway
from agents.gateway.database import Database
from agents.gateway.http import Answer, Request
from agents.gateway.parking import Parking
from fleet.models import Site
from tests.agents.boots import make_release, plan_of
from tests.world import make_client, make_world


def with_database(work: Callable[[Database], Any]) -> Any:
    """What the coroutine ``work(database)`` returns, with a running database that is closed after it."""

    async def run() -> Any:
        database = Database()
        commits = asyncio.create_task(database.run())
        try:
            return await work(database)
        finally:
            await database.write(connections.close_all)
            commits.cancel()
            database.close()

    return asyncio.run(run())


def test_writes_that_come_at_once_share_a_transaction_and_are_answered_after_it(transactional_db: None) -> None:
    durable, held = list[int](), threading.Event()

    def wait() -> None:
        held.wait(5)

    def write(number: int) -> list[int]:
        Site.objects.create(slug=f"site-{number}", name=str(number))
        transaction.on_commit(lambda: durable.append(number))
        return list(durable)

    async def work(database: Database) -> list[list[int]]:
        first = asyncio.ensure_future(database.write(wait))
        await asyncio.sleep(0.05)  # it is in its transaction: the others queue
        others = [asyncio.ensure_future(database.write(write, number)) for number in range(20)]
        await asyncio.sleep(0.05)
        assert not any(other.done() for other in others)
        held.set()
        await first
        return await asyncio.gather(*others)

    seen = with_database(work)
    assert seen == [[]] * 20, "none was durable before the last was written"
    assert durable == list(range(20)), "in the order in which they came"
    assert Site.objects.count() == 20


def test_a_write_that_fails_takes_back_itself_and_no_other(transactional_db: None) -> None:
    def write(number: int) -> int:
        Site.objects.create(slug=f"site-{number}", name=str(number))
        if number == 2:
            raise ValueError("two")
        return number

    async def work(database: Database) -> list[object]:
        return list(await asyncio.gather(*(database.write(write, n) for n in range(5)), return_exceptions=True))

    outcomes = with_database(work)
    assert [str(outcome) for outcome in outcomes] == ["0", "1", "two", "3", "4"]
    assert sorted(Site.objects.values_list("name", flat=True)) == ["0", "1", "3", "4"]


def test_a_database_that_is_away_fails_each_write_and_serves_the_next(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(database: Database) -> tuple[object, int]:
        with monkeypatch.context() as patch:
            patch.setattr("agents.gateway.database._commit", lambda jobs: 1 / 0)
            outcome = (await asyncio.gather(database.write(Site.objects.count), return_exceptions=True))[0]
        return outcome, await database.write(Site.objects.count)

    outcome, count = with_database(work)
    assert isinstance(outcome, ZeroDivisionError)
    assert count == 0


class Counting(Database):
    """A database that counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    async def read(self, *args: Any) -> Any:
        self.asked += 1
        return await super().read(*args)

    async def write(self, *args: Any) -> Any:
        self.asked += 1
        return await super().write(*args)


def test_an_idle_poll_of_a_known_session_asks_the_database_nothing(
    transactional_db: None, keys: Path, settings: Settings
) -> None:
    settings.POLL_HOLD = 0.05
    world = make_world()
    make_release(world.gamer)
    bearer = plan_of(make_client(world.clubroom))["bearer"]

    async def run() -> list[tuple[int, int]]:
        gateway, database = Gateway(), Counting()
        gateway._database = database
        commits = asyncio.create_task(database.run())

        async def receive() -> dict[str, Any]:
            return {"type": "http.request"}

        async def poll(state: str) -> Answer:
            headers, query = {"authorization": f"Bearer {bearer}"}, {"cursor": "0", "state": state}
            return await gateway._next(Request("GET", "/agent/v1/next", query, headers, "", receive))

        try:
            return [((await poll(state)).status, database.asked) for state in ("ready", "ready", "ready", "in-use")]
        finally:
            await database.write(connections.close_all)
            for _ in range(4):
                await database.read(connections.close_all)
            commits.cancel()
            database.close()

    assert asyncio.run(run()) == [(204, 2), (204, 2), (204, 2), (204, 3)]


def test_who_is_silent_for_long_is_forgotten_before_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Parking, "MOST", 3)
    parking = Parking()
    for number in range(3):
        parking.enter(str(number), uuid.uuid4(), uuid.uuid4())
    for number in (0, 1):
        attendant = parking.by_bearer[str(number)]
        attendant.seen_at = attendant.seen_at.replace(year=2000)
    parking.enter("3", uuid.uuid4(), uuid.uuid4())
    assert set(parking.by_bearer) == {"2", "3"}


def test_a_poll_that_is_woken_as_a_newer_one_takes_its_place_leaves_the_commands_to_that() -> None:
    async def run() -> list[str]:
        parking = Parking()
        attendant = parking.enter("a", uuid.uuid4(), uuid.uuid4())
        older = asyncio.ensure_future(parking.park(attendant, 5))
        await asyncio.sleep(0)
        newer = asyncio.ensure_future(parking.park(attendant, 0.05))
        parking.wake(attendant.client)
        return [await older, await newer]

    assert asyncio.run(run()) == ["replaced", "held"]
