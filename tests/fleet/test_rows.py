"""Rows found, made and changed by one statement: like a pattern, from values or from a query; what is there already is left alone."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext

from agents.models import Command, Envelope, Order, Verb
from fleet.columns import Epoch, Text
from fleet.models import Client, ClientState, Tag
from fleet.rows import insert_rows, update_rows
from tests.agents.boots import boot, make_release
from tests.agents.conftest import keys
from tests.world import World, make_client

__all__ = ["keys"]


def test_values_become_rows_like_the_pattern_in_their_order_by_one_statement(world: World) -> None:
    names = [f"tag-{number}" for number in range(50, 0, -1)]
    with CaptureQueriesContext(connection) as asked:
        assert insert_rows(Tag(site=world.clubroom), ["name"], ((name,) for name in names)) == 50
    assert len(asked) == 1
    assert list(Tag.objects.filter(site=world.clubroom).order_by("pk").values_list("name", flat=True)) == names


def test_what_a_pattern_does_not_say_has_the_fields_default(world: World) -> None:
    odd = "a'b\"c%s ü"
    rows = [("00000000-0000-0000-0000-00000000000a", "52:54:00:00:00:0a", odd)]
    assert insert_rows(Client(site=world.clubroom, name="pc-a"), ["id", "mac", "seat"], rows) == 1
    client = Client.objects.get()
    assert (str(client.pk)[-1], client.mac, client.seat, client.name) == ("a", "52:54:00:00:00:0a", odd, "pc-a")
    assert (client.admission, client.adapters, client.last_seen) == ("pending", [], None)
    assert client.since is not None


def test_what_is_there_already_is_left_alone_and_nothing_else_is_forgiven(world: World) -> None:
    Tag.objects.create(site=world.clubroom, name="stage")
    assert insert_rows(Tag(site=world.clubroom), ["name"], [("stage",), ("loud",), ("loud",)]) == 1
    assert Tag.objects.count() == 2
    assert insert_rows(Tag(site=world.clubroom), ["name"], []) == 0
    with pytest.raises(IntegrityError), transaction.atomic():
        insert_rows(Client(site=world.clubroom, name="x", admission="nonsense"), ["mac"], [("52:54:00:00:00:01",)])


# --- changed, and found -----------------------------------------------------------------------------------------------


@pytest.fixture
def three(world: World) -> list[Client]:
    return [make_client(world.clubroom, f"52:54:00:00:00:0{number}") for number in (1, 2, 3)]


ODD = ["a'b\"c%s ü", "", "{x,y}\\"]


def test_each_row_gets_its_own_values_by_one_statement(three: list[Client], world: World) -> None:
    since = [datetime(2026, 1, 1, 12, number, 0, 7, UTC) for number in range(3)]
    rows = [
        (one.pk, ODD[at], [{"a": ODD[at]}], 7 * at, since[at], ClientState.READY, world.gamer if at else None)
        for at, one in enumerate(three)
    ]
    columns = ["seat", "adapters", "memory_kib", "since", "state", "client_class"]
    with CaptureQueriesContext(connection) as asked:
        assert update_rows(Client, columns, rows) == 3
    assert len(asked) == 1
    found = {row[0]: row[1:] for row in Client.objects.values_list("pk", *columns)}
    assert found == {pk: (*others, kind.pk if kind else None) for pk, *others, kind in rows}


def test_what_all_get_and_what_is_nothing_is_stored_as_that(three: list[Client]) -> None:
    assert update_rows(Client, ["memory_kib", "last_seen"], [(one.pk, 4, None) for one in three]) == 3
    assert update_rows(Client, ["memory_kib", "client_class"], [(three[0].pk, None, None)]) == 1
    assert [*Client.objects.order_by("mac").values_list("memory_kib", "last_seen")] == [
        (None, None),
        (4, None),
        (4, None),
    ]
    assert update_rows(Client, ["seat"], []) == 0


def test_only_rows_that_are_as_said_are_changed(three: list[Client]) -> None:
    Client.objects.filter(pk=three[1].pk).update(state=ClientState.READY)
    rows = [(one.pk, f"B{at}") for at, one in enumerate(three)]
    assert update_rows(Client, ["seat"], rows, state=ClientState.READY) == 1
    assert set(Client.objects.values_list("seat", flat=True)) == {three[0].seat, "B1", three[2].seat}


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite looks up one row after the other")
def test_what_statistics_do_not_know_yet_makes_no_plan_that_compares_all_with_all(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new order for thousands: by the statistics no row is as said, in truth all are. The planner must not believe them."""
    monkeypatch.setattr(
        "fleet.rows._cursor", connection.cursor
    )  # which writes the values into the statement, to be explained
    made = Client.objects.bulk_create(
        Client(site=world.clubroom, mac=f"52:54:00:00:{at >> 8:02x}:{at & 255:02x}", name=f"pc-{at}")
        for at in range(3000)
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE fleet_client")
    Client.objects.update(state=ClientState.READY)
    with CaptureQueriesContext(connection) as asked:
        changed = update_rows(
            Client, ["seat"], [(one.pk, f"S{one.name}") for one in made[:1000]], state=ClientState.READY
        )
    assert changed == 1000
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN (FORMAT JSON) " + asked[0]["sql"].replace("%", "%%"))
        (plan,) = cursor.fetchone()[0][0]["Plan"]["Plans"]
    assert plan["Plan Rows"] > 100, "else it is a loop within a loop sooner or later"


def test_a_time_is_read_as_a_number(three: list[Client]) -> None:
    since = datetime(2026, 1, 1, 12, 0, 0, 123000, UTC)
    Client.objects.filter(pk=three[0].pk).update(since=since, last_seen=None)
    ((epoch, nothing),) = Client.objects.filter(pk=three[0].pk).values_list(Epoch("since"), Epoch("last_seen"))
    assert (epoch, nothing) == (pytest.approx(since.timestamp(), abs=0.0005), None)


def test_a_key_is_read_as_text(three: list[Client]) -> None:
    Client.objects.filter(pk=three[0].pk).update(client_class=None)
    columns = (Text("pk"), Text("sessions__boot_id"))
    assert [*Client.objects.filter(pk=three[0].pk).values_list(*columns)] == [(str(three[0].pk), None)]


def test_bytes_are_stored_as_they_are(world: World, keys: Path) -> None:
    make_release(world.gamer)
    session = boot(make_client(world.clubroom, "52:54:00:00:00:01"))
    other = boot(make_client(world.clubroom, "52:54:00:00:00:02"))
    made = [
        Command.objects.create(
            order=Order.objects.create(site=world.clubroom, verb=Verb.CYCLE, reason="x"),
            client=one.client,
            verb=Verb.CYCLE,
            expires_at=datetime(2026, 1, 1, tzinfo=UTC),
        )
        for one in (session, other)
    ]
    bodies = [bytes(range(256)), b""]
    pattern = Envelope(signed_at=datetime(2026, 1, 1, tzinfo=UTC))
    rows = [(one.pk, None, body, b"\x00,\xff") for one, body in zip(made, bodies, strict=True)]
    assert insert_rows(pattern, ["command", "sequence", "body", "signature"], rows) == 2
    found = [Envelope.objects.get(pk=one.pk) for one in made]
    assert [bytes(one.body) for one in found] == bodies
    assert {bytes(one.signature) for one in found} == {b"\x00,\xff"}


def test_many_are_found_by_their_keys_as_one_value(three: list[Client], world: World) -> None:
    wanted = [three[0].pk, three[2].pk]
    with CaptureQueriesContext(connection) as asked:
        assert {one.pk for one in Client.objects.filter(pk__among=wanted)} == set(wanted)
    assert len(asked) == 1
    assert Client.objects.filter(pk__among=[]).count() == 0
    assert Client.objects.filter(seat__among=[three[1].seat, ODD[0]]).count() == 1
    assert Client.objects.filter(site__among=[world.clubroom, world.school.pk]).count() == 3
    assert Client.objects.exclude(pk__among=wanted).get() == three[1]
