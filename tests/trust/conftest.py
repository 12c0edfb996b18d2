"""Keys of a test's own, as in tests/agents."""

from tests.agents.conftest import keys

__all__ = ["keys"]
