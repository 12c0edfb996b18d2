"""Who runs is there: two daemons, longer than the time after which silence means lost, through restarts of the gateway."""

import time
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from agents import schedule
from agents.models import BootSession, SessionStatus
from fleet.models import Client, ClientState
from tests.agents.boots import ATI, CIRRUS, make_release, plan_of
from tests.agents.conftest import forget
from tests.agents.gateways import daemon, gateway
from tests.services import redis_server, wait_for
from tests.world import make_client, make_world

pytestmark = pytest.mark.slow
SHOWN = [(ClientState.READY, SessionStatus.OPEN)] * 2


def shown() -> list[tuple[str, str]]:
    """State and session status of each client."""
    rows = BootSession.objects.exclude(status=SessionStatus.SUPERSEDED).order_by("client__mac")
    return list(rows.values_list("client__state", "status"))


def test_two_clients_stay_ready_as_long_as_their_daemons_run_and_are_lost_when_they_do_not(
    transactional_db: None, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    make_release(world.gamer)
    make_release(world.contest)
    clients = [make_client(world.clubroom, f"52:54:00:00:00:0{number}") for number in (1, 2)]
    settings.LOST_AFTER = 6
    monkeypatch.setattr("agents.schedule.CAP_S", 6)  # the gateway returns at once, so no daemon pauses for long
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()  # what the daemons will say, too
    with redis_server() as queue, gateway(queue.url, lost_after=6, poll_hold=1) as gate:
        settings.PUBLIC_KEYS, settings.REDIS_URL = gate.keys, queue.url
        forget()
        plans = [plan_of(client, pci, boot_id=boot_id) for client, pci in zip(clients, (CIRRUS, ATI), strict=True)]
        with daemon(plans[0], gate.url) as one, daemon(plans[1], gate.url) as other:
            for _ in range(2):
                wait_for(lambda: shown() == SHOWN, "both clients are ready")
                end = time.monotonic() + 7
                while time.monotonic() < end:
                    schedule.tick()
                    assert shown() == SHOWN, f"{gate.log}\n{one.log}\n{other.log}"
                    time.sleep(0.1)
                gate.restart()
            wait_for(lambda: shown() == SHOWN, "both clients are ready after the second restart")
            other.kill()

            def lost() -> bool:
                schedule.tick()
                return shown() == [SHOWN[0], (ClientState.LOST, SessionStatus.LOST)]

            wait_for(lost, "the one whose daemon died, and no other, counts as lost", 30)
            assert "Traceback" not in gate.log
    assert Client.objects.filter(trouble="").count() == 2
