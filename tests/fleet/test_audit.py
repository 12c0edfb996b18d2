import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.test import Client as Browser

from fleet import audit
from fleet.models import AuditEntry
from tests.world import World, make_client


def entries(world: World) -> list[AuditEntry]:
    return [audit.record("test", f"thing {number}", site=world.clubroom, actor=world.vera) for number in range(3)]


def test_an_untouched_chain_is_proved(world: World) -> None:
    entries(world)
    assert list(audit.verify()) == []
    call_command("audit", "verify")


@pytest.mark.parametrize("statement", ["UPDATE fleet_auditentry SET actor = 'x'", "DELETE FROM fleet_auditentry"])
def test_the_database_refuses_to_change_or_remove_an_entry(world: World, statement: str) -> None:
    entries(world)
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE fleet_auditentry SET actor = 'mallory' WHERE sequence = 2",
        "DELETE FROM fleet_auditentry WHERE sequence = 1",
        "DELETE FROM fleet_auditentry WHERE sequence = 2",
        "DELETE FROM fleet_auditentry WHERE sequence = 3",
        "UPDATE fleet_auditentry SET sequence = sequence + 10 WHERE sequence = 2",
    ],
)
def test_what_is_done_behind_the_log_is_found(world: World, statement: str) -> None:
    entries(world)
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("DROP TRIGGER fleet_auditentry_no_update")
            cursor.execute("DROP TRIGGER fleet_auditentry_no_delete")
        else:
            cursor.execute("DROP TRIGGER fleet_auditentry_append_only ON fleet_auditentry")
        cursor.execute(statement)
    assert list(audit.verify(world.clubroom))
    with pytest.raises(CommandError):
        call_command("audit", "verify", "--site", "clubroom")


def test_the_board_shows_ones_own_site_only(world: World, client: Browser) -> None:
    make_client(world.clubroom)
    client.force_login(world.vera)
    assert client.get("/sites/clubroom/").status_code == 200
    client.force_login(world.mallory)
    assert client.get("/sites/clubroom/").status_code == 404
