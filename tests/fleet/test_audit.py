import json
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.test import Client as Browser
from pytest_django import DjangoAssertNumQueries

from fleet import audit
from fleet.models import AuditEntry
from tests.agents.restores import make_restore
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


def test_a_million_entries_would_cost_two_queries_for_each_five_hundred(
    world: World, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for _ in range(30):
        audit.record("test", "thing", site=world.clubroom, actor=world.vera)
    make_restore(world, make_client(world.clubroom))
    with django_assert_max_num_queries(8):
        assert list(audit.verify(world.clubroom)) == []


def test_the_log_is_written_out_and_no_file_is_overwritten(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries(world)
    restore = make_restore(world, make_client(world.clubroom))
    call_command("audit", "export", "--site", "clubroom", "--format", "jsonl")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["subject"] for line in lines[:3]] == ["thing 0", "thing 1", "thing 2"]
    out = tmp_path / "restores.csv"
    call_command("audit", "export", "--what", "restores", "--out", str(out))
    assert restore.after in out.read_text()
    with pytest.raises(CommandError, match="cannot be written: File exists"):
        call_command("audit", "export", "--what", "restores", "--out", str(out))
    call_command("audit", "export", "--format", "jsonl", "--until", "2020-01-01")
    assert capsys.readouterr().out == ""
    with pytest.raises(CommandError, match=r"no site 'nowhere'; there are: .*clubroom"):
        call_command("audit", "verify", "--site", "nowhere")
