"""The state of the server on the admin's first page, for those who can do something about it."""

import time
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.urls import reverse
from pytest_django.fixtures import Settings

from agents import freezing
from fleet import alive
from tests.board.conftest import DESKTOP, PHONE, Room

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def root(room: Room, settings: Settings) -> User:
    """Who runs the server. This process speaks for its parts."""
    settings.REDIS_URL = room.service.environment["FLEET_REDIS_URL"]
    settings.COMMAND_KEY = str(settings.PUBLIC_KEYS / "command.key")
    return User.objects.create_superuser("root", password="correct horse battery")


def say_all_well() -> None:
    for part in ("clock", *alive.QUEUES):
        alive.say_alive(part)
    with alive.connection() as connected:
        connected.set(alive.GATEWAY_UP, str(time.time()))


@pytest.mark.parametrize(
    ("screen", "scheme"), [(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light"), (PHONE, "dark")]
)
def test_what_fails_stands_there_with_what_to_do(room: Room, root: User, screen: dict[str, Any], scheme: str) -> None:
    page = room.page(root, color_scheme=scheme, **screen)
    say_all_well()
    page.goto(f"{room.url}{reverse('admin:index')}")
    health = page.get_by_role("region", name="State of the server")
    assert health.locator(".good").count() == 11
    assert health.locator(".bad, .noted, .unknown, dl").count() == 0
    freezing.freeze(room.world.clubroom, "cables", room.world.vera)
    with alive.connection() as connected:
        connected.delete(alive.GATEWAY_UP, "fleet.alive.sender")
    page.reload()
    assert health.locator(".bad").all_inner_texts() == ["gateway", "sender"]
    assert health.locator(".noted").all_inner_texts() == ["signing frozen"]
    assert "systemctl status fleet-sender" in health.inner_text()
    over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert over <= 0, f"{over} pixels too wide"


def test_who_does_not_run_the_server_is_not_told(room: Room, root: User) -> None:
    room.world.vera.memberships.update(role="site-admin")
    page = room.page(room.world.vera)
    page.goto(f"{room.url}{reverse('admin:index')}")
    page.get_by_role("link", name="Clients", exact=True).first.wait_for()
    assert page.get_by_role("region", name="State of the server").count() == 0
