"""A web process of its own and a Chromium for the browser tests, one of each; pages that tell on themselves."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client as Visitor
from playwright.sync_api import Browser, BrowserContext, Page

from fleet.models import Client
from tests.board.rows import make_night
from tests.board.server import chromium, web_server
from tests.services import Service, database_url, redis_server
from tests.world import World, make_world

PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}


@dataclass
class Room:
    """The club night as a person sees it. ``tellings`` are console errors, refused answers and foreign requests."""

    world: World
    clients: dict[str, Client]
    service: Service
    url: str
    queue: redis.Redis
    browser: Browser
    tellings: list[str] = field(default_factory=list)
    contexts: list[BrowserContext] = field(default_factory=list)

    @property
    def board(self) -> str:
        return f"{self.url}/sites/clubroom/"

    def page(self, user: User | None, **options: Any) -> Page:
        """A page of a new browser context in which ``user`` is logged in; options as of Playwright's contexts."""
        context = self.browser.new_context(**{**DESKTOP, "reduced_motion": "reduce", **options})
        context.set_default_timeout(10_000)
        self.contexts.append(context)
        if user is not None:
            visitor = Visitor()
            visitor.force_login(user)
            cookie = visitor.cookies[settings.SESSION_COOKIE_NAME]
            context.add_cookies([{"name": cookie.key, "value": cookie.value, "url": self.url}])
        page = context.new_page()
        page.on("console", lambda message: self._told(message.type in ("error", "warning"), message.text))
        page.on("pageerror", lambda error: self._told(True, str(error)))
        page.on("request", lambda request: self._told(urlsplit(request.url).netloc != self._host, request.url))
        return page

    def live(self, user: User, query: str = "", **options: Any) -> Page:
        """The board, once its line is live."""
        page = self.page(user, **options)
        page.goto(self.board + query)
        page.locator("[data-line=live]").wait_for()
        return page

    def tile(self, page: Page, seat: str) -> Any:
        return page.locator(f"#client-{self.clients[seat].pk}")

    @property
    def _host(self) -> str:
        return urlsplit(self.url).netloc

    def _told(self, bad: bool, text: str) -> None:
        if bad:
            self.tellings.append(text)


@pytest.fixture(scope="module")
def web(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Service]]:
    """The web process on the test database, and the Redis it sends orders to."""
    directory = tmp_path_factory.mktemp("web")
    with redis_server() as queue:
        environment = {
            "FLEET_DATABASE_URL": database_url(),
            "FLEET_REDIS_URL": queue.url,
            "FLEET_SECRET_KEY": settings.SECRET_KEY,
            "FLEET_DATA": str(directory),
        }
        with web_server(environment, directory) as service:
            yield service, queue


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Gone with its module: Playwright's own loop runs in this thread, and other tests start theirs."""
    # For the same reason Django would refuse the tests' queries.
    with pytest.MonkeyPatch.context() as patch, chromium() as browser:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        yield browser


@pytest.fixture
def room(transactional_db: None, web: tuple[Service, Service], browser: Browser) -> Iterator[Room]:
    """The club night, committed; at its end nothing may have been told."""
    world = make_world()
    service, queue = web
    with redis.Redis.from_url(queue.url) as connection:
        connection.flushall()
        room = Room(world, make_night(world.clubroom, world.vera), service, service.url, connection, browser)
        yield room
        for context in room.contexts:
            context.close()
    assert room.tellings == []
    assert "Traceback" not in service.log
