"""Keys of a test's own, as in tests/agents; and no sender that goes on telling of what a test tampered with."""

from collections.abc import Iterator

import pytest

from agents import witnessing
from tests.agents.conftest import keys

__all__ = ["keys"]


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """A process is told of tampered chains for as long as it lives; a test's life is shorter."""
    yield
    witnessing.tampered.clear()
