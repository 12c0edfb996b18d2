"""Feeds: one task per site and process reads the board for all who watch it, and tells them what changed.

A feed numbers its changes. Each item remembers the number at which it last changed, so "what is new since 17" needs no history
and whatever a slow watcher missed arrives merged. Nothing is read where nobody watches.
"""

import asyncio
import hashlib
import json
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError, connection
from django.template.loader import render_to_string

from agents.board.facts import Fact, Reading
from agents.board.reading import read
from fleet.models import Site

log = logging.getLogger(__name__)

PERIOD_S = 0.5  # between two readings, and between two updates to a watcher: at most two a second
LINGER_S = 30.0  # a feed outlives its last watcher, so that a phone that wakes up gets only what it missed
TROUBLE_PAUSE_S = 5.0

_readers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="board")


@dataclass
class Item:
    """One rendered fact. ``digest`` lets the page keep what it already shows."""

    fact: Fact
    html: str
    digest: str
    changed: int


def render(fact: Fact) -> tuple[str, str]:
    """HTML and its digest, which is in the HTML too."""
    html = render_to_string(fact.template, {"it": fact})
    digest = hashlib.sha256(html.encode()).hexdigest()[:12]
    return html.replace('data-digest=""', f'data-digest="{digest}"', 1), digest


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Run ``function`` beside the event loop; its database connection is given back each time."""

    def work() -> Any:
        try:
            return function(*args)
        finally:
            connection.close()

    return await asyncio.get_running_loop().run_in_executor(_readers, work)


def read_site(site_id: int) -> Reading:
    return read(Site.objects.get(pk=site_id))


class Feed:
    """What a site's board shows, numbered by change."""

    def __init__(self, site_id: int, reader: Callable[[int], Reading] = read_site) -> None:
        self.epoch = secrets.token_hex(4)
        self.number = 0
        self.watchers = 0
        self.begun = self.completed = 0  # readings
        self._site_id = site_id
        self._reader = reader
        self._items: dict[str, dict[str, Item]] = {}
        self._order: dict[str, tuple[int, list[str]]] = {}
        self._gone: dict[str, dict[str, int]] = {}
        self._read = asyncio.Event()
        self._left = time.monotonic()
        self.task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self.watchers or time.monotonic() - self._left < LINGER_S:
            pause = PERIOD_S
            if self.watchers:
                self.begun += 1
                try:
                    self.merge(await in_thread(self._reader, self._site_id))
                except (DatabaseError, Site.DoesNotExist) as error:
                    log.warning("The board of site %s could not be read: %s", self._site_id, error)
                    pause = TROUBLE_PAUSE_S
                else:
                    self.completed = self.begun
                    self._read.set()
                    self._read = asyncio.Event()
            await asyncio.sleep(pause)

    @contextmanager
    def watch(self) -> Iterator["Feed"]:
        self.watchers += 1
        try:
            yield self
        finally:
            self.watchers -= 1
            self._left = time.monotonic()

    def merge(self, reading: Reading) -> bool:
        """Take ``reading`` as what is shown from now on; True if anything differs from before."""
        number, differs = self.number + 1, False
        for section, facts in reading.sections.items():
            items, gone = self._items.setdefault(section, {}), self._gone.setdefault(section, {})
            for fact in facts:
                before = items.get(fact.key)
                if before is None or before.fact != fact:
                    html, digest = render(fact)
                    items[fact.key] = Item(fact, html, digest, number)
                    gone.pop(fact.key, None)
                    differs = True
            keys = [fact.key for fact in facts]
            for key in items.keys() - set(keys):
                del items[key]
                gone[key] = number
                differs = True
            if self._order.get(section, (0, None))[1] != keys:
                self._order[section] = (number, keys)
                differs = True
        if differs:
            self.number = number
        return differs

    async def newer_than(self, number: int, reading: int) -> None:
        """Return once there is a change after ``number`` and the ``reading``-th reading is complete."""
        while self.number <= number or self.completed < reading:
            await self._read.wait()

    def since(self, number: int) -> dict[str, Any]:
        """What changed after ``number`` (0: everything), by section and key: ``[digest, html]``."""
        sections: dict[str, Any] = {}
        for section, items in self._items.items():
            changed = {key: [item.digest, item.html] for key, item in items.items() if item.changed > number}
            gone = [key for key, at in self._gone[section].items() if at > number]
            at, order = self._order[section]
            part = {"items": changed, "gone": gone} | ({"order": order} if at > number else {})
            if changed or gone or "order" in part:
                sections[section] = part
        return sections

    def seen_by(self, last_event_id: str) -> int:
        """The number a returning watcher has seen, or 0: another process or an older feed numbered it."""
        epoch, _, number = last_event_id.partition("-")
        return int(number) if epoch == self.epoch and number.isdecimal() and int(number) <= self.number else 0

    def event(self, seen: int) -> str:
        """The event that brings a watcher from ``seen`` to now."""
        data = {"full": seen == 0, "now": time.time_ns() // 1_000_000, "sections": self.since(seen)}
        kind = "snapshot" if seen == 0 else "change"
        return f"id: {self.epoch}-{self.number}\nevent: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"


class Feeds:
    """The feeds of this process, by site. Use from the event loop alone."""

    def __init__(self) -> None:
        self._feeds: dict[int, Feed] = {}

    def of(self, site_id: int) -> Feed:
        feed = self._feeds.get(site_id)
        if feed is None or feed.task.done():
            self._feeds = {key: old for key, old in self._feeds.items() if not old.task.done()}
            feed = self._feeds[site_id] = Feed(site_id)
        return feed


feeds = Feeds()
