"""/metrics of a gateway: what it counted while it served clients."""

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pytest_django.fixtures import Settings

from agents.models import Verb
from tests.agents.gateways import gateway
from tests.agents.rooms import Room, make_room
from tests.services import redis_server, wait_for

pytestmark = pytest.mark.slow
TOKEN = "t" * 40


def counted(room: Room) -> dict[tuple[str, ...], float]:
    with room.gate.visitor("") as monitor:
        answer = monitor.get("/metrics", Authorization=f"Bearer {TOKEN}")
    assert answer.status == 200
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


def test_a_gateway_tells_what_it_counted_to_who_brings_the_token(transactional_db: None, settings: Settings) -> None:
    with (
        redis_server() as queue,
        gateway(queue.url, poll_hold=15, metrics_token=TOKEN) as gate,
        make_room(gate, queue.url, settings) as room,
        gate.visitor("") as stranger,
    ):
        for brought in ("", "Bearer x"):
            answer = stranger.get("/metrics", Authorization=brought)
            assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        session, visitor = room.running()
        visitor.park()
        wait_for(lambda: counted(room)["fleet_parked_polls",] == 1, "the poll is parked")
        command = room.send(session, Verb.RESTART)
        assert room.opened(visitor.reply(), session) == [str(command.pk)]
        visitor.report(command.pk, "accepted")
        visitor.report(command.pk, "accepted")
        found = counted(room)
        assert found["fleet_parked_polls",] == 0
        assert found["fleet_polls_total", "delivered"] == 1
        assert found["fleet_nudge_to_accepted_seconds_count", "restart"] == 1
        assert 0 < found["fleet_nudge_to_accepted_seconds_sum", "restart"] < 60
        assert found["fleet_clock_skew_seconds_bucket", "86400.0"] == 0  # the test's daemon lives in 2023
        assert found["fleet_clock_skew_seconds_count",] == 1
        assert found["fleet_requests_total", "/agent/v1/session", "200"] == 1
        assert found["fleet_requests_total", "/metrics", "401"] == 2
        assert stranger.get("/nowhere").status == 404
        assert counted(room)["fleet_requests_total", "other", "404"] == 1


def test_restores_and_rejected_requests_are_told(transactional_db: None, settings: Settings) -> None:
    with (
        redis_server() as queue,
        gateway(queue.url, poll_hold=15, metrics_token=TOKEN) as gate,
        make_room(gate, queue.url, settings) as room,
        gate.visitor("") as stranger,
    ):
        session, visitor = room.running()
        visitor.park()
        command = room.send(session, Verb.CYCLE)
        assert room.opened(visitor.reply(), session) == [str(command.pk)]
        visitor.report(command.pk, "accepted")
        home = command.envelope.args["home_digest"]
        result = {"after": home, "before": "cd" * 32, "phases_ms": {"restore": 200, "total": 900}}
        for _ in range(2):
            assert visitor.report(command.pk, "succeeded", "", result).json["accepted"] == [str(command.pk)]
        statuses = [stranger.ask("PUT", "/agent/v1/capture", b"").status for _ in range(25)]
        assert statuses[:20] == [401] * 20
        assert 429 in statuses
        found = counted(room)
        assert found["fleet_restore_phase_seconds_count", "total"] == 1, "a report that comes twice is one restore"
        assert found["fleet_restore_phase_seconds_sum", "total"] == 0.9
        assert found["fleet_restore_phase_seconds_bucket", "0.1", "restore"] == 0
        assert found["fleet_restore_phase_seconds_bucket", "0.25", "restore"] == 1
        assert found["fleet_rejected_admissions_total", "/agent/v1/capture"] == statuses.count(429)
        assert found["fleet_requests_total", "/agent/v1/capture", "429"] == statuses.count(429)
        assert found["process_resident_memory_bytes",] > 10e6


def test_a_gateway_without_a_token_has_no_such_page(transactional_db: None, settings: Settings) -> None:
    with redis_server() as queue, gateway(queue.url) as gate, gate.visitor("") as stranger:
        assert stranger.get("/metrics").status == 404
