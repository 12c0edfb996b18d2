"""What was signed: kept as it was, by who upgrades and whoever comes later."""

from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from agents.models import Command, CommandStatus, Envelope, args_of
from tests.agents.restores import make_command
from tests.world import World, make_client, make_world


def migrated(name: str) -> Any:
    """The models as of a migration of agents, to which the database is brought."""
    executor = MigrationExecutor(connection)
    executor.migrate([("agents", name)])
    return MigrationExecutor(connection).loader.project_state([("agents", name)]).apps


@pytest.mark.slow
def test_an_upgrade_takes_over_all_that_was_signed(transactional_db: None) -> None:
    world = make_world()
    signed, waits = (make_command(world, make_client(world.clubroom, f"52:54:00:00:00:0{n}")) for n in (1, 2))
    session, at = signed.envelope.session_id, timezone.now()
    try:
        old = migrated("0013_newest_restores_of_a_site").get_model("agents", "Command").objects
        was = {"sequence": 7, "envelope": b'{"args":{"a":1}}', "signature": b"\x00,\xff", "key_id": "command-1"}
        old.filter(pk=signed.pk).update(session_id=session, sent_at=at, **was)
        old.filter(pk=waits.pk).update(status="queued", sent_at=None)
    finally:
        migrated("0015_envelopes_are_append_only")
    one = Envelope.objects.get()
    assert (one.command_id, one.session_id, one.sequence, one.key_id, one.signed_at) == (
        *(signed.pk, session, 7, "command-1"),
        at,
    )
    assert (bytes(one.body), bytes(one.signature), one.args) == (was["envelope"], was["signature"], {"a": 1})
    assert Command.objects.get(pk=signed.pk).sent_at == at
    with pytest.raises(DatabaseError, match="envelopes are append-only"), transaction.atomic():
        Envelope.objects.update(sequence=8)


@pytest.mark.parametrize("change", [lambda rows: rows.update(body=b"{}"), lambda rows: rows._raw_delete("default")])
def test_nobody_changes_or_removes_one(world: World, change: Any) -> None:
    make_command(world, make_client(world.clubroom))
    connection.check_constraints()
    with pytest.raises(DatabaseError, match="envelopes are append-only"), transaction.atomic():
        change(Envelope.objects.all())


def test_its_command_stays_with_it(world: World) -> None:
    command = make_command(world, make_client(world.clubroom))
    with pytest.raises(DatabaseError), transaction.atomic():
        command.delete()
    assert Command.objects.get().status == CommandStatus.ACCEPTED


@pytest.mark.parametrize("body", [None, b"", b"\xff\xfe", b"fleet wake 1\n", b"[1]", b'"x"', b"{}", b'{"args":[]}'])
def test_what_is_no_envelope_has_no_arguments(body: bytes | None) -> None:
    assert args_of(body) == {}


def test_arguments_are_those_that_were_signed() -> None:
    assert args_of(memoryview(b'{"args":{"home_digest":"ab"}}')) == {"home_digest": "ab"}
