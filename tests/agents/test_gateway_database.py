"""The gateway and its database, in this process: groups of reads and writes, and polls that cost none."""

import asyncio
import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connections, transaction
from pytest_django.fixtures import Settings

from agents.gateway import database as lanes
from agents.gateway.app import Gateway
from agents.gateway.database import AT_LEISURE, AT_ONCE, CROWD, CROWDED_S, MANY, MOST, Database
from agents.gateway.http import Request
from agents.gateway.parking import Parking, Poll
from fleet.models import Site
from tests.agents.boots import make_release, plan_of
from tests.agents.gateways import Line, running
from tests.world import make_client, make_world


def with_database(work: Callable[[Database], Any]) -> Any:
    """What the coroutine ``work(database)`` returns, with a running database that is closed after it."""

    async def run() -> Any:
        database = Database()
        async with running(database):
            return await work(database)

    return asyncio.run(run())


class Held:
    """Keeps a database's writes waiting until it is left, so that what is asked meanwhile comes together."""

    def __init__(self, database: Database) -> None:
        self._database, self._go = database, threading.Event()

    async def __aenter__(self) -> None:
        self._first = asyncio.ensure_future(self._database.write(self._go.wait, 5))
        await asyncio.sleep(0.05)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0.05)
        self._go.set()
        await self._first


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


def test_who_asks_the_same_at_once_is_answered_together_and_in_turn(transactional_db: None) -> None:
    groups: list[list[int]] = []

    def doubled(numbers: Sequence[int]) -> list[int]:
        groups.append(list(numbers))
        return [2 * number for number in numbers]

    async def work(database: Database) -> list[int]:
        async with Held(database):
            answers = [database.write_all(doubled, n) for n in range(MOST + 1)]
        return await asyncio.gather(*answers)

    assert with_database(work) == [2 * n for n in range(MOST + 1)]
    assert groups == [list(range(MOST)), [MOST]]


def test_a_group_that_fails_is_tried_one_by_one_and_only_who_fails_alone_is_taken_back(transactional_db: None) -> None:
    def made(names: Sequence[str]) -> list[str | ValueError]:
        if len(names) > 1:
            Site.objects.create(slug="of-the-group", name="it was taken back")
            raise RuntimeError("together they do not go")
        Site.objects.create(slug=names[0], name=names[0])
        return [names[0] if names[0] != "two" else ValueError("two")]

    async def work(database: Database) -> list[object]:
        async with Held(database):
            answers = [database.write_all(made, name) for name in ("one", "two", "three")]
        return list(await asyncio.gather(*answers, return_exceptions=True))

    assert [str(answer) for answer in with_database(work)] == ["one", "two", "three"]
    assert sorted(Site.objects.values_list("slug", flat=True)) == ["one", "three"]


def test_what_is_urgent_goes_first_and_what_has_time_last(transactional_db: None) -> None:
    done: list[str] = []

    def of(name: str) -> Callable[[Sequence[None]], list[None]]:
        def group(items: Sequence[None]) -> list[None]:
            done.append(name)
            return list(items)

        return group

    async def work(database: Database) -> None:
        async with Held(database):
            last = database.write_all(of("last"), None, AT_LEISURE)
            usual = [database.write_all(of(f"usual {n}"), None) for n in range(2)]
            first = database.write_all(of("first"), None, AT_ONCE)
        await asyncio.gather(last, *usual, first)

    with_database(work)
    assert done == ["first", "usual 0", "usual 1", "last"]


def test_a_database_that_is_away_fails_each_write_and_serves_the_next(transactional_db: None) -> None:
    async def work(database: Database) -> tuple[object, int]:
        commit = database._writes._carry_out
        database._writes._carry_out = lambda group, items: 1 / 0  # type: ignore[assignment,return-value]
        outcome = (await asyncio.gather(database.write(Site.objects.count), return_exceptions=True))[0]
        database._writes._carry_out = commit
        return outcome, await database.write(Site.objects.count)

    outcome, count = with_database(work)
    assert isinstance(outcome, ZeroDivisionError)
    assert count == 0


def asked_together(name: str, order: list[tuple[str, int]]) -> Callable[[Sequence[int]], Sequence[int]]:
    """A group that notes in ``order`` when it is carried out, and how many it holds."""

    def group(items: Sequence[int]) -> Sequence[int]:
        order.append((name, len(items)))
        return items

    return group


def test_who_comes_just_after_a_group_goes_with_those_who_come_next(transactional_db: None) -> None:
    order: list[tuple[str, int]] = []

    async def work(database: Database) -> None:
        group = asked_together("told", order)
        assert await database.write_all(group, 1) == 1, "a lonely one waits for nobody"
        second = database.write_all(group, 2)
        await asyncio.sleep(0.01)
        assert await database.write_all(group, 3) == 3
        assert await second == 2

    with_database(work)
    assert order == [("told", 1), ("told", 2)]


def test_after_a_crowd_the_next_wait_for_company(transactional_db: None) -> None:
    order: list[tuple[str, int]] = []

    async def work(database: Database) -> None:
        group = asked_together("told", order)
        for _ in range(3):
            asked = [database.write_all(group, number, AT_ONCE) for number in range(CROWD)]
            await asyncio.sleep(CROWDED_S / 4)
        await asyncio.gather(*asked)

    with_database(work)
    assert order == [("told", CROWD), ("told", 2 * CROWD)]


def test_where_the_database_went_away_nothing_is_tried_alone(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have committed; who asked finds that out."""
    monkeypatch.setattr(type(connections["default"]), "is_usable", lambda self: False)
    groups: list[int] = []

    def fails(items: Sequence[int]) -> Sequence[int]:
        groups.append(len(items))
        raise OperationalError("the server closed the connection")

    async def work(database: Database) -> list[object]:
        async with Held(database):
            asked = [database.write_all(fails, number) for number in range(3)]
        return list(await asyncio.gather(*asked, return_exceptions=True))

    assert [type(outcome) for outcome in with_database(work)] == [OperationalError] * 3
    assert groups == [3]


def test_what_is_written_at_leisure_waits_while_many_begin(transactional_db: None) -> None:
    order: list[tuple[str, int]] = []

    async def work(database: Database) -> None:
        begin = asked_together("begin", order)
        await asyncio.gather(*(database.write_all(begin, number, AT_ONCE) for number in range(MANY)))
        seen = asyncio.ensure_future(database.write_at_leisure(order.append, ("seen", 1)))
        usual = database.write(order.append, ("asked for", 1))
        await asyncio.gather(seen, usual)

    with_database(work)
    assert order == [("begin", MANY), ("asked for", 1), ("seen", 1)]


@pytest.mark.parametrize(("patience_s", "last"), [(60.0, True), (0.2, False)])
def test_while_many_begin_what_was_done_waits_for_so_long_and_no_longer(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch, patience_s: float, last: bool
) -> None:
    monkeypatch.setattr(lanes, "PATIENCE_S", patience_s)
    order: list[tuple[str, int]] = []

    async def work(database: Database) -> None:
        begin, done = (asked_together(name, order) for name in ("begin", "done"))

        async def many() -> None:
            await asyncio.gather(*(database.write_all(begin, number, AT_ONCE) for number in range(MANY)))

        await many()
        told = database.write_all(done, 0)
        for _ in range(6):
            await asyncio.sleep(0.1)
            await many()
        await told

    with_database(work)
    assert (order[-1] == ("done", 1)) == last
    assert order.count(("begin", MANY)) == 7


def test_a_note_that_fails_is_logged_and_keeps_nobody_waiting(
    transactional_db: None, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(items: Sequence[int]) -> Sequence[int]:
        raise OperationalError("it is away")

    async def work(database: Database) -> None:
        database.note(fails, 1)
        await asyncio.sleep(0.1)
        assert await database.write(lambda: 5) == 5

    with_database(work)
    assert "it is away" in caplog.text


class Counting(Database):
    """A database that counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        for lane in (self._reads, self._writes):
            lane._put = self._counted(lane._put)  # type: ignore[method-assign]

    def _counted(self, put: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> None:
            self.asked += 1
            put(*args)

        return counted


def test_an_idle_poll_of_a_known_session_asks_the_database_nothing(
    transactional_db: None, keys: Path, settings: Settings
) -> None:
    settings.POLL_HOLD = 0.05
    world = make_world()
    make_release(world.gamer)
    bearer = plan_of(make_client(world.clubroom))["bearer"]

    async def run() -> list[tuple[int, int]]:
        gateway, database = Gateway(), Counting()
        gateway.daemons._database = database
        holding = asyncio.create_task(gateway.parking.hold())

        async def poll(state: str) -> int:
            line = Line()
            target, headers = f"/agent/v1/next?cursor=0&state={state}", {"authorization": f"Bearer {bearer}"}
            gateway.handle(Request("GET", target, headers, line))
            return (await line.answers.get()).status

        async with running(database):
            found = [(await poll(state), database.asked) for state in ("ready", "ready", "ready", "in-use")]
        holding.cancel()
        return found

    assert asyncio.run(run()) == [(204, 2), (204, 2), (204, 2), (204, 3)]


def parking() -> tuple[Parking, list[tuple[Poll, str]]]:
    """A parking, and what it tells of polls that have ended."""
    ended: list[tuple[Poll, str]] = []
    return Parking(lambda poll, how: ended.append((poll, how))), ended


def test_who_is_silent_for_long_is_forgotten_before_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Parking, "MOST", 3)
    place, _ = parking()
    for number in range(3):
        place.enter(str(number), uuid.uuid4(), uuid.uuid4())
    for number in (0, 1):
        attendant = place.by_bearer[str(number)]
        attendant.seen_at = 0.0
    place.enter("3", uuid.uuid4(), uuid.uuid4())
    assert set(place.by_bearer) == {"2", "3"}


def test_of_two_polls_of_a_session_the_newer_is_woken_and_the_older_ends() -> None:
    place, ended = parking()
    attendant = place.enter("a", uuid.uuid4(), uuid.uuid4())
    older, newer = (Poll(attendant, Line(), 0, 0.0) for _ in range(2))
    place.park(older)
    place.park(newer)
    assert ended == [(older, "replaced")]
    assert place.wake([attendant.client]) == [newer]
    assert place.parked() == 0


def test_who_is_woken_before_it_asks_is_remembered() -> None:
    place, _ = parking()
    attendant = place.enter("a", uuid.uuid4(), uuid.uuid4())
    assert place.wake([attendant.client]) == []
    assert place.waiting == {attendant.client}


def test_a_line_that_broke_holds_no_poll_and_shows_nobody_present() -> None:
    place, ended = parking()
    attendant = place.enter("a", uuid.uuid4(), uuid.uuid4())
    line = Line()
    place.park(Poll(attendant, line, 0, 0.0))
    place.lost(line)
    line.broken = True
    place.park(Poll(attendant, line, 0, 0.0))
    assert (place.parked(), place.take_seen(), ended) == (0, [], [])


def test_holds_grow_with_those_who_wait_up_to_a_bound(settings: Settings) -> None:
    settings.POLL_HOLD = 25
    place, _ = parking()
    holds = {}
    for number in range(15_000):
        if number in (0, 4000, 10_000, 14_000):
            holds[number] = place.hold_s()
        place.park(Poll(place.enter(str(number), uuid.uuid4(), uuid.uuid4()), Line.__new__(Line), 0, 0.0))
    assert holds == {0: 25, 4000: 25, 10_000: 50, 14_000: 60}
