import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.test import Client as Browser
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from fleet import audit
from fleet.models import AuditEntry
from tests.agents.restores import make_command, make_restore
from tests.services import PROJECT, database_url
from tests.world import World, make_client, make_world


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


@pytest.mark.parametrize("table", ["fleet_auditentry", "agents_homerestore"])
def test_the_database_refuses_to_put_another_row_in_the_place_of_one(world: World, table: str) -> None:
    make_restore(world, make_client(world.clubroom))
    replace = {
        "sqlite": f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}",
        "postgresql": f"INSERT INTO {table} SELECT * FROM {table} ON CONFLICT (id) DO UPDATE SET at = now()",
    }[connection.vendor]
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(replace)


def unguarded(*statements: str) -> None:
    """Run ``statements`` as one who owns the database can: with its triggers taken away."""
    with connection.cursor() as cursor:
        for table in ("fleet_auditentry", "agents_homerestore"):
            if connection.vendor == "sqlite":
                cursor.execute(f"DROP TRIGGER {table}_no_update")
                cursor.execute(f"DROP TRIGGER {table}_no_delete")
            else:
                cursor.execute(f"DROP TRIGGER {table}_append_only ON {table}")
        for statement in statements:
            cursor.execute(statement)


def forged(world: World, sequence: int, previous: str) -> AuditEntry:
    """An entry that is right in itself; not stored."""
    entry = AuditEntry(
        chain=f"site-{world.clubroom.pk}",
        sequence=sequence,
        site=world.clubroom,
        at=timezone.now(),
        actor="mallory",
        action="test",
        subject="forged",
        previous=previous,
    )
    entry.digest = audit._digest(entry)
    return entry


SWAP = "UPDATE fleet_auditentry SET sequence = {} WHERE sequence = {}"


@pytest.mark.parametrize(
    ("statements", "told"),
    [
        (["UPDATE fleet_auditentry SET actor = 'mallory' WHERE sequence = 2"], ["#2: was changed since"]),
        (
            ["UPDATE fleet_auditentry SET at = '2020-01-01 00:00:00+00:00' WHERE sequence = 1"],
            ["#1: was changed since"],
        ),
        (["UPDATE fleet_auditentry SET detail = '{\"x\": 1}' WHERE sequence = 3"], ["#3: was changed since"]),
        (["UPDATE fleet_auditentry SET subject_seal = '' WHERE sequence = 5"], ["#5: was changed", "has no entry"]),
        (["DELETE FROM fleet_auditentry WHERE sequence = 1"], ["#2: #1 before it is missing"]),
        (["DELETE FROM fleet_auditentry WHERE sequence IN (2, 3)"], ["#4: #2 to #3 before it is missing"]),
        (["DELETE FROM fleet_auditentry WHERE sequence >= 5"], ["#6: #5 to #6 at the end of the chain is missing"]),
        (["DELETE FROM fleet_auditentry"], ["#6: #1 to #6 at the end of the chain is missing", "has no entry"]),
        (["DELETE FROM fleet_audithead"], ["has no recorded end: the head of the chain was removed"]),
        (
            ["UPDATE fleet_audithead SET sequence = 5", "DELETE FROM fleet_auditentry WHERE sequence = 6"],
            ["#5: the end of the chain is not the entry that was written there"],
        ),
        (
            [SWAP.format(99, 2), SWAP.format(2, 3), SWAP.format(3, 99)],
            ["#2: does not follow", "#2: was changed", "#3: does not follow", "#3: was changed", "#4: does not follow"],
        ),
        (
            ["UPDATE fleet_auditentry SET sequence = 99 WHERE sequence = 2"],
            ["#99: the chain should end at #6", "#3: #2 before"],
        ),
        (
            ["UPDATE fleet_auditentry SET chain = 'everywhere' WHERE sequence = 2"],
            ["everywhere #2: has no recorded end"],
        ),
        (["UPDATE agents_homerestore SET files = 0"], ["the agents.HomeRestore", "it seals was changed"]),
        (["DELETE FROM agents_homerestore"], ["it seals was removed"]),
    ],
)
def test_what_is_done_behind_the_log_is_found(
    world: World, capsys: pytest.CaptureFixture[str], statements: list[str], told: list[str]
) -> None:
    entries(world)
    make_restore(world, make_client(world.clubroom))  # one entry for its order, one that seals it
    audit.record("test", "last", site=world.clubroom, actor=world.vera)
    assert list(AuditEntry.objects.order_by("sequence").values_list("action", flat=True))[3:] == [
        "order",
        "restore",
        "test",
    ]
    unguarded(*statements)
    faults = "\n".join(map(str, audit.verify()))
    for words in told:
        assert words in faults, faults
    with pytest.raises(CommandError, match=r"^\d+ faults?\.$"):
        call_command("audit", "verify", "--site", "clubroom")
    assert faults.splitlines()[0] in capsys.readouterr().out or "everywhere" in faults


@pytest.mark.parametrize("replaces", [2, 4])
def test_an_entry_put_in_is_found_although_it_is_right_in_itself(world: World, replaces: int) -> None:
    """In place of the second with the right predecessor, and after the last."""
    before = entries(world)[replaces - 2]
    unguarded(f"DELETE FROM fleet_auditentry WHERE sequence = {replaces}")
    forged(world, replaces, before.digest).save(force_insert=True)
    faults = [str(fault) for fault in audit.verify()]
    where = f"site-{world.clubroom.pk}"
    assert faults == [
        f"{where} #3: does not follow the entry before it: one of them was replaced or moved."
        if replaces == 2
        else f"{where} #4: the chain should end at #3: entries at its end were added."
    ]


def test_a_restore_put_in_without_an_entry_is_found(world: World) -> None:
    restore = make_restore(world, make_client(world.clubroom))
    command = make_command(world, make_client(world.clubroom, "52:54:00:00:00:02"))
    restore.pk, restore.command = None, command
    restore.save(force_insert=True)
    [fault] = audit.verify()
    assert (
        str(fault) == f"site-{world.clubroom.pk} #0: the agents.HomeRestore {restore.pk} has no entry: it was inserted."
    )


def test_a_log_that_is_written_meanwhile_is_proved_without_a_false_alarm(transactional_db: None) -> None:
    world = make_world()
    entries(world)
    begun, done = threading.Event(), threading.Event()

    def write() -> None:
        try:
            while not done.is_set():
                audit.record("test", "meanwhile", site=world.clubroom, actor="x")
                begun.set()
        finally:
            connection.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert begun.wait(20)
        faults = [fault for _ in range(15) for fault in audit.verify()]
    finally:
        done.set()
        writer.join()
    assert faults == []


@pytest.mark.parametrize("statement", ["UPDATE agents_homerestore SET files = 0", "DELETE FROM agents_homerestore"])
def test_the_database_refuses_to_change_or_remove_a_restore(world: World, statement: str) -> None:
    make_restore(world, make_client(world.clubroom))
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)


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
    with django_assert_max_num_queries(6):
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


@pytest.mark.slow
def test_a_reader_who_has_enough_gets_no_complaint(transactional_db: None) -> None:
    world = make_world()
    with transaction.atomic():
        for _ in range(400):  # more than a pipe holds
            audit.record("test", "thing " * 30, site=world.clubroom, actor=world.vera)
    with subprocess.Popen(
        [sys.executable, "manage.py", "audit", "export"],
        cwd=PROJECT,
        env={**os.environ, "FLEET_DATABASE_URL": database_url()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as export:
        assert export.stdout is not None
        assert export.stderr is not None
        assert export.stdout.readline().startswith("id,chain,sequence,")
        export.stdout.close()
        assert export.stderr.read() == ""
        assert export.wait(30) == 0


@pytest.mark.slow
def test_half_a_file_is_not_left_behind(world: World, tmp_path: Path) -> None:
    out = tmp_path / "log.csv"
    script = f"ulimit -f 0; exec {sys.executable} manage.py audit export --out {out}"
    asked = subprocess.run(
        ["sh", "-c", script],
        cwd=PROJECT,
        env={**os.environ, "FLEET_DATABASE_URL": database_url()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 1
    assert asked.stderr == f"CommandError: {out} cannot be written: File too large.\n"
    assert not out.exists()
