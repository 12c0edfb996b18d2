"""The stream of changes: coalesced, numbered, and over once its person may no longer watch."""

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client as Visitor

from agents.board import feed as feeding
from agents.board import stream as streaming
from agents.board.facts import Count, Reading
from agents.observing import observe
from fleet.models import ClientState, Membership
from tests.world import World, make_client, make_world


@pytest.fixture
def world(transactional_db: None) -> World:
    """Committed: feeds read in threads of their own."""
    return make_world()


def session_of(user: User) -> str:
    visitor = Visitor()
    visitor.force_login(user)
    return str(visitor.session.session_key)


def elsewhere(work: Callable[[], object]) -> threading.Thread:
    """Run ``work`` in a thread as another process would: with a database connection of its own."""

    def run() -> None:
        try:
            work()
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


async def messages(session: str, site: int, seconds: float, last_event_id: str = "") -> list[tuple[float, str, Any]]:
    """What the stream says within ``seconds``: when, which event, its data. Ends early when the stream does."""
    heard: list[tuple[float, str, Any]] = []

    async def listen() -> None:
        async for text in streaming.stream(session, site, last_event_id):
            event = re.search(r"event: (\w+)\ndata: (.*)\n", text)
            if event is not None:
                at = time.monotonic()
                heard.append((at, event[1], json.loads(event[2])))

    try:
        async with asyncio.timeout(seconds):
            await listen()
    except TimeoutError:
        pass
    return heard


@pytest.mark.slow
def test_a_burst_of_changes_arrives_as_at_most_two_updates_a_second(world: World) -> None:
    client = make_client(world.clubroom)
    session = session_of(world.vera)
    states = [ClientState.BOOTING, ClientState.READY, ClientState.IN_USE]

    def burst() -> None:
        for number in range(60):
            observe(client, states[number % 3])
            time.sleep(0.04)
        observe(client, ClientState.LOST)

    thread = elsewhere(burst)
    heard = asyncio.run(messages(session, world.clubroom.pk, 4.0))
    thread.join()
    assert heard[0][1] == "snapshot"
    assert {kind for _, kind, _ in heard[1:]} == {"change"}
    assert len(heard) >= 4
    assert min(later - earlier for (earlier, *_), (later, *_) in pairwise(heard)) > 0.49
    html = heard[-1][2]["sections"]["clients"]["items"][str(client.pk)][1]
    assert 'data-state="lost"' in html


@pytest.mark.slow
def test_nothing_is_sent_while_nothing_changes(world: World) -> None:
    make_client(world.clubroom)
    heard = asyncio.run(messages(session_of(world.vera), world.clubroom.pk, 2.0))
    assert [kind for _, kind, _ in heard] == ["snapshot"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["logged out", "membership taken away", "deactivated"])
def test_the_stream_ends_when_its_person_may_no_longer_watch(world: World, how: str) -> None:
    session = session_of(world.vera)

    def leave() -> None:
        time.sleep(0.7)
        if how == "logged out":
            import_module(settings.SESSION_ENGINE).SessionStore(session).delete()
        elif how == "membership taken away":
            Membership.objects.filter(user=world.vera).delete()
        else:
            User.objects.filter(pk=world.vera.pk).update(is_active=False)

    thread = elsewhere(leave)
    heard = asyncio.run(messages(session, world.clubroom.pk, 30.0))
    thread.join()
    assert [kind for _, kind, _ in heard] == ["snapshot", "end"]


def reading(**numbers: int) -> Reading:
    return Reading({"counts": [Count(key, key, number) for key, number in numbers.items()]})


async def empty_feed() -> feeding.Feed:
    """A feed that nobody watches: it reads nothing by itself."""
    return feeding.Feed(0)


def test_a_slow_watcher_gets_what_it_missed_merged_and_nothing_else() -> None:
    async def scenario() -> None:
        feed = await empty_feed()
        assert feed.merge(reading(off=1, ready=1, lost=1))
        seen = feed.number
        for number in (2, 3, 4):
            assert feed.merge(reading(off=number, ready=1, lost=1))
        assert not feed.merge(reading(off=4, ready=1, lost=1))
        assert feed.merge(reading(off=4, ready=1))
        missed = feed.since(seen)["counts"]
        assert list(missed["items"]) == ["off"]
        assert "<b>4</b>" in missed["items"]["off"][1]
        assert missed["gone"] == ["lost"]
        assert missed["order"] == ["off", "ready"]
        assert feed.since(feed.number) == {}

    asyncio.run(scenario())


@pytest.mark.parametrize("last", ["", "rubbish", "{epoch}-99", "{epoch}--1", "{epoch}-x", "0000-1", "-1"])
def test_a_number_that_is_not_this_feeds_means_a_whole_snapshot(last: str) -> None:
    async def scenario() -> None:
        feed = await empty_feed()
        feed.merge(reading(off=1))
        assert feed.seen_by(last.format(epoch=feed.epoch)) == 0
        assert feed.seen_by(f"{feed.epoch}-1") == 1

    asyncio.run(scenario())


@pytest.mark.slow
def test_all_who_watch_share_one_reading(world: World) -> None:
    make_client(world.clubroom)
    session = session_of(world.vera)

    async def scenario() -> int:
        watchers = [messages(session, world.clubroom.pk, 2.0) for _ in range(8)]
        heard = await asyncio.gather(*watchers)
        assert all(each[0][1] == "snapshot" for each in heard)
        return feeding.feeds.of(world.clubroom.pk).begun

    assert asyncio.run(scenario()) <= 5


def test_a_stranger_gets_no_stream(world: World) -> None:
    assert Visitor().get("/sites/clubroom/events").status_code == 302
    foreigner = Visitor()
    foreigner.force_login(world.mallory)
    assert foreigner.get("/sites/clubroom/events").status_code == 404
