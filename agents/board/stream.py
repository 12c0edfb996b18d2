"""The event stream of one watcher."""

import asyncio
import time
from collections.abc import AsyncIterator

from django.conf import settings
from django.contrib.auth import get_user
from django.http import HttpRequest
from django.utils.module_loading import import_string

from agents.board import feed as feeding
from fleet.models import Site

CHECK_S = 2.0  # how long a person who logged out or lost the role may still watch
BEAT_S = 10.0
RETRY_MS = 2000


def may_watch(session_key: str, site_id: int) -> bool:
    """True while the session is logged in and its person may see the site. Reads all of it anew."""
    request = HttpRequest()
    request.session = import_string(f"{settings.SESSION_ENGINE}.SessionStore")(session_key)
    return Site.objects.visible_to(get_user(request)).filter(pk=site_id).exists()


async def stream(session_key: str, site_id: int, last_event_id: str = "") -> AsyncIterator[str]:
    """A snapshot, or what was missed since ``last_event_id``; then changes, and a beat where there are none.

    Ends with an ``end`` event once the person may no longer watch.
    """
    yield f"retry: {RETRY_MS}\n\n"
    with feeding.feeds.of(site_id).watch() as feed:
        seen = feed.seen_by(last_event_id)
        fresh = feed.begun + 1  # the page is younger than what the feed read before: showing that would be a step back
        checked = said = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(CHECK_S):
                    await feed.newer_than(seen, fresh)
                    await asyncio.sleep(max(0.0, said + feeding.PERIOD_S - time.monotonic()) if seen else 0.0)
            except TimeoutError:
                pass
            if time.monotonic() - checked >= CHECK_S:
                checked = time.monotonic()
                if not await feeding.in_thread(may_watch, session_key, site_id):
                    yield "event: end\ndata: {}\n\n"
                    return
            if feed.number > seen and feed.completed >= fresh:
                message, seen, said = feed.event(seen), feed.number, time.monotonic()
                yield message
            elif time.monotonic() - said >= BEAT_S:
                said = time.monotonic()
                # A comment keeps proxies awake; the event tells the page that the line is not dead.
                yield f": beat\nevent: beat\ndata: {time.time_ns() // 1_000_000}\n\n"
