"""Keys of a test's own, and no Redis but one it starts."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from agents import campaigning, schedule, sending
from tests.keys import keys_in


@pytest.fixture
def keys(settings: Settings, tmp_path: Path) -> Iterator[Path]:
    """A directory with fresh keys; this process is web, sender and gateway at once, and Redis is away."""
    directory = tmp_path / "keys"
    keys_in(directory)
    settings.PUBLIC_KEYS = directory
    settings.COMMAND_KEY, settings.SESSION_KEY = str(directory / "command.key"), str(directory / "session.key")
    settings.SENDER_BOOK = tmp_path / "sender" / "book.sqlite3"
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    forget()
    yield directory
    forget()


def forget() -> None:
    """A connection is made once for a process's life; a test's life is shorter."""
    sending.connection.cache_clear()


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a gateway had listened for long: the clock takes silence for what it is."""
    monkeypatch.setattr(schedule, "_gateway_listens", lambda: True)


@pytest.fixture
def begun_by_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A campaign's first parts are the worker's too, so that a test can look at each; and a slow machine is no reason to rest."""
    monkeypatch.setattr(campaigning, "begin", lambda campaign: [])
    monkeypatch.setattr(campaigning, "REST", 0)
