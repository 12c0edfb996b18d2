"""Years of commands that have ended must not be read again every other second: what is open is found by an index."""

import re
from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import connection, models
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from agents import campaigning, delivering, metrics, schedule, sending, waiting
from agents.attendance import Said, seen
from agents.board import reading
from agents.evidence import Boot, new_boots
from agents.gateway import waker
from agents.models import (
    BootSession,
    Command,
    CommandStatus,
    Envelope,
    HomeRestore,
    Order,
    RestoreResult,
    SessionStatus,
    Verb,
    Wake,
    Way,
)
from agents.power import pressing
from tests.agents.halls import make_hall, started
from tests.world import World

PAST = 800
KEPT: list[type[models.Model]] = [Command, Wake, HomeRestore]
if connection.vendor == "postgresql":  # SQLite has no index of live sessions that it could use
    KEPT.append(BootSession)
COUNTED = ("metrics", HomeRestore)  # how many there ever were is what is asked

pytestmark = [pytest.mark.slow, pytest.mark.django_db, pytest.mark.usefixtures("keys", "heard")]


@pytest.fixture
def hall(world: World) -> BootSession:
    """Four PCs that have done a lot, and are to do something now."""
    clients = list(make_hall(world.clubroom, "A1", "A2", "A3", "A4").values())
    long_ago = timezone.now() - timedelta(days=300)
    orders = Order.objects.bulk_create(
        Order(site=world.clubroom, verb=Verb.CYCLE, reason="next player", ordered_by=world.vera, ordered_at=long_ago)
        for _ in range(PAST // 4)
    )
    sessions = BootSession.objects.bulk_create(
        BootSession(
            client=clients[number % 4],
            boot_id=uuid4(),
            bearer_digest=f"past {number}",
            status=SessionStatus.SUPERSEDED,
            **dict.fromkeys(("planned_at", "last_seen", "ended_at"), long_ago + timedelta(minutes=number)),
        )
        for number in range(PAST)
    )
    times = ("queued_at", "sent_at", "accepted_at", "finished_at", "expires_at")
    commands = Command.objects.bulk_create(
        Command(
            order=orders[number // 4],
            client=session.client,
            verb=(Verb.CYCLE, Verb.WAKE)[number % 2],
            status=CommandStatus.SUCCEEDED,
            **dict.fromkeys(times, session.ended_at),
        )
        for number, session in enumerate(sessions)
    )
    Envelope.objects.bulk_create(
        Envelope(
            command=command,
            session=session,
            sequence=number,
            body=bytes(400),
            signature=bytes(229),
            signed_at=command.queued_at,
        )
        for number, (command, session) in enumerate(zip(commands, sessions, strict=True), 10**12)
    )
    Wake.objects.bulk_create(Wake(command=command, way=Way.RELAYS, rounds=1) for command in commands)
    HomeRestore.objects.bulk_create(
        HomeRestore(
            site=world.clubroom, client=command.client, command=command, at=command.queued_at, result=RestoreResult.LOST
        )
        for command in commands
    )
    started(world, verb=Verb.CYCLE)
    connection.check_constraints()
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")  # as autovacuum does; of SQLite nobody asks for it
    return BootSession.objects.get(client=clients[0], status=SessionStatus.OPEN)


def everything(model: type[models.Model], statement: str) -> bool:
    """Whether the database would read all rows of a model for a statement."""
    table = model._meta.db_table
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}")
            # "SCAN t USING INDEX i" reads what is in the index: of a partial one, what is open.
            return any(re.fullmatch(rf"SCAN {table}", row[3]) for row in cursor.fetchall())
        cursor.execute(f"EXPLAIN {statement}")
        return any(f"Seq Scan on {table}" in row[0] for row in cursor.fetchall())


REGULARLY: dict[str, Callable[[BootSession], object]] = {
    "the clock": lambda _: schedule.tick(),
    "the clock of campaigns": lambda _: campaigning.step(),
    "the sender": lambda _: sending.send(Command.objects.all()),
    "the sender's power ports": lambda _: pressing.press_due(),
    "a gateway's sweep": lambda _: [delivering.awaited(), delivering.cut_off(timezone.now())],
    "a gateway that gives out commands": lambda session: delivering.envelopes([(session.pk, 0)]),
    "a gateway that writes down who is there": lambda session: seen({session.pk: Said("ready", timezone.now())}),
    "a gateway that wakes": lambda _: waker._under_way(),
    "a boot": lambda session: new_boots([Boot(session.client_id, uuid4())]),
    "metrics": lambda _: list(metrics.commands()),
    "the board": lambda session: reading.read(session.client.site),
    "who watches caps": lambda _: list(waiting.uses()),
}


@pytest.mark.parametrize("who", REGULARLY)
def test_no_work_that_is_done_every_few_seconds_reads_all_there_ever_was(
    hall: BootSession, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fleet.rows._cursor", connection.cursor
    )  # which writes the values into the statement, to be explained
    with CaptureQueriesContext(connection) as asked:
        REGULARLY[who](hall)
    statements = [query["sql"] for query in asked if query["sql"].startswith(("SELECT", "UPDATE"))]
    assert statements
    kept = [model for model in KEPT if (who, model) != COUNTED]
    assert [(model.__name__, said) for said in statements for model in kept if everything(model, said)] == []


def test_reading_all_is_noticed(hall: BootSession) -> None:
    """Else the test above could not fail."""
    with CaptureQueriesContext(connection) as asked:
        list(Command.objects.filter(status=CommandStatus.SENT))
    assert everything(Command, asked[0]["sql"])


def test_open_ones_are_found_as_by_their_status(hall: BootSession) -> None:
    assert Command.objects.open().count() == Command.objects.filter(status__in=Command.OPEN).count() == 4
    assert Command.objects.open(CommandStatus.QUEUED).count() == 4
    assert not Command.objects.open(CommandStatus.SENT, CommandStatus.ACCEPTED).exists()
