from collections.abc import Iterator

import pytest

from tests.daemon.gateway import Gateway
from tests.daemon.running import Daemon, Terminal


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    yield gateway
    gateway.close()


@pytest.fixture
def daemon(gateway: Gateway) -> Iterator[Daemon]:
    """It has a session, and its first poll is parked."""
    with Daemon() as daemon:
        daemon.begin(gateway)
        gateway.wait(lambda: gateway.polls)
        yield daemon


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()
