"""Keys of a test of faults are its own, as in tests/agents."""

import pytest
from pytest_django.fixtures import Settings

from tests.agents.conftest import keys

__all__ = ["keys"]


@pytest.fixture
def limits(settings: Settings) -> None:
    """Short ones: time passes in steps of two seconds."""
    settings.POLL_HOLD, settings.POLL_SPREAD, settings.LOST_AFTER = 10, 1, 12
    settings.COMMAND_LIFE, settings.BOOT_LIMIT, settings.BOOT_TOKEN_LIFE = 40, 60, 60
