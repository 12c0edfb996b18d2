"""Signed heads: who owns the database can cut a chain or write all of it anew, and cannot make it look as if nothing was."""

from collections.abc import Callable
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from pytest_django.fixtures import Settings

from agents import rotation, speaking, tasks, witnessing
from agents.book import Book
from agents.daemon import protocol
from fleet import audit, checkpoints
from fleet.exceptions import OperatorError, SiteError
from fleet.models import AuditCheckpoint, AuditEntry, AuditHead
from fleet.signing import Signer, make_pair
from fleet.slots import Slots
from tests.agents.restores import make_restore
from tests.trust.forging import rewrite, unguarded
from tests.world import World, make_client


@pytest.fixture
def world(world: World, keys: Path) -> World:
    return world


def chain_of(world: World) -> str:
    return f"site-{world.clubroom.pk}"


def write(world: World, number: int = 3) -> None:
    for index in range(number):
        audit.record("test", f"thing {index}", site=world.clubroom, actor=world.vera)


def told(book: Path | None = None) -> list[str]:
    return [fault.text for fault in checkpoints.faults(book=book)]


def signed(world: World) -> list[int]:
    rows = AuditCheckpoint.objects.filter(chain=chain_of(world)).order_by("sequence")
    return list(rows.values_list("sequence", flat=True))


# --- signing ----------------------------------------------------------------------------------------------------------


def test_the_sender_signs_heads_that_moved_and_remembers_them(world: World, settings: Settings) -> None:
    write(world)
    audit.record("test", "x", site=None, actor="x")
    assert witnessing.witness() == 2
    assert signed(world) == [3]
    assert witnessing.witness() == 0, "nothing moved"
    write(world, 2)
    tasks.send_checkpoints()
    assert signed(world) == [3, 5]
    head = AuditHead.objects.get(chain=chain_of(world))
    with Book.at(settings.SENDER_BOOK) as book:
        assert book.heads()[chain_of(world)] == (5, head.digest)
    assert told(settings.SENDER_BOOK) == []


def test_signed_twice_is_signed_once(world: World, settings: Settings) -> None:
    """The sender died after the row was written and before its book was."""
    write(world)
    signer = Signer.load(settings.COMMAND_KEY, "command")
    first = checkpoints.sign(signer, chain_of(world), checkpoints.BEGIN)
    assert checkpoints.sign(signer, chain_of(world), checkpoints.BEGIN) == first
    assert signed(world) == [3]


def test_a_long_chain_is_signed_piece_by_piece(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "AT_ONCE", 4)
    write(world, 10)
    for _ in range(4):
        witnessing.witness()
    assert signed(world) == [5, 9, 10]
    assert told() == []


def test_without_its_key_or_its_book_the_sender_says_so(world: World, settings: Settings) -> None:
    settings.SENDER_BOOK = Path("/proc/nowhere/book.sqlite3")
    with pytest.raises(SiteError, match="The sender's book /proc/nowhere"):
        witnessing.witness()
    settings.COMMAND_KEY = ""
    with pytest.raises(SiteError, match="This process has no command key"):
        witnessing.witness()


def test_a_checkpoint_is_no_envelope_and_an_envelope_no_checkpoint(world: World, keys: Path) -> None:
    """One key signs both."""
    write(world)
    witnessing.witness()
    row = AuditCheckpoint.objects.get()
    body = checkpoints.checkpoint_bytes(row.chain, row.sequence, row.digest, row.at)
    known = protocol.parse_keys((keys / "command.pub").read_text().strip())
    with pytest.raises(protocol.Refused, match="bad-signature"):
        protocol.authenticate(speaking.envelope(body, bytes(row.signature), row.key_id), known, "x", "y")
    assert not body.startswith(b"{")


@pytest.mark.parametrize("statement", ["UPDATE {} SET sequence = 7", "DELETE FROM {}"])
def test_the_database_refuses_to_change_or_remove_one(world: World, statement: str) -> None:
    write(world)
    witnessing.witness()
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement.format("fleet_auditcheckpoint"))


def test_signatures_of_a_retired_key_still_prove(world: World, keys: Path, settings: Settings) -> None:
    write(world)
    witnessing.witness()
    slots = Slots.at("command", keys, keys / "command.key")
    for stage in rotation.STAGES:
        rotation.advance(slots, stage)
    witnessing.witness()
    assert len(set(AuditCheckpoint.objects.values_list("key_id", flat=True))) == 2
    assert AuditCheckpoint.objects.order_by("pk").last().key_id == slots.present  # type: ignore[union-attr]
    assert told(settings.SENDER_BOOK) == []


# --- what is found ----------------------------------------------------------------------------------------------------

HEADS = "DELETE FROM fleet_auditcheckpoint"


def cut(world: World) -> None:
    """Take the last entries away, and put the head where they were."""
    last = AuditEntry.objects.get(chain=chain_of(world), sequence=2)
    unguarded(
        "DELETE FROM fleet_auditentry WHERE sequence > 2",
        f"UPDATE fleet_audithead SET sequence = 2, digest = '{last.digest}' WHERE chain = '{last.chain}'",
    )


def all_anew(world: World) -> None:
    rewrite(chain_of(world), lambda entry: entry.sequence != 2)


def first_anew(world: World) -> None:
    def change(entry: AuditEntry) -> bool:
        entry.actor = "nobody" if entry.sequence == 1 else entry.actor
        return True

    rewrite(chain_of(world), change)


def longer_than_before(world: World) -> None:
    all_anew(world)
    write(world, 7)


TAMPERING: list[Callable[[World], None]] = [cut, all_anew, first_anew, longer_than_before]


@pytest.mark.parametrize("tamper", TAMPERING, ids=lambda tamper: tamper.__name__)
@pytest.mark.parametrize("without_checkpoints", [False, True], ids=["", "and removed the signed heads"])
def test_a_chain_that_is_right_in_itself_and_not_what_was_signed_is_found(
    world: World, settings: Settings, tamper: Callable[[World], None], without_checkpoints: bool
) -> None:
    write(world, 5)
    witnessing.witness()
    assert list(audit.verify()) == []
    tamper(world)
    assert list(audit.verify()) == [], "it is right in itself"
    if without_checkpoints:
        unguarded(HEADS)
        assert told() == [], "the database alone does not know it any more"
    else:
        assert told() != []
    found = told(settings.SENDER_BOOK)
    assert any("the sender's book has" in text for text in found)
    assert without_checkpoints == any("knows was removed" in text for text in found)
    with pytest.raises(CommandError, match=r"^\d+ faults?\.$"):
        call_command("audit", "verify", "--book", str(settings.SENDER_BOOK))


@pytest.mark.parametrize("tamper", TAMPERING, ids=lambda tamper: tamper.__name__)
def test_what_was_tampered_with_is_signed_no_more(
    world: World, tamper: Callable[[World], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Or the sender itself would give a forged past its signature."""
    write(world, 5)
    witnessing.witness()
    tamper(world)
    for _ in range(2):
        write(world, 1)
        assert witnessing.witness() == 0
    assert signed(world) == [5]
    assert f"The chain {chain_of(world)} does not go on at #" in caplog.text
    audit.record("test", "x", site=world.school, actor="x")
    assert witnessing.witness() == 1, "other chains are signed as before"


def test_an_entry_changed_after_it_was_seen_is_not_built_upon(world: World) -> None:
    write(world)
    witnessing.witness()
    unguarded("UPDATE fleet_auditentry SET actor = 'mallory' WHERE sequence = 3")
    write(world, 1)
    assert witnessing.witness() == 0


def test_a_signed_head_of_somebody_else_is_found(world: World, keys: Path, tmp_path: Path) -> None:
    write(world)
    make_pair("command", tmp_path / "own.key", tmp_path / "own.pub")
    checkpoints.sign(Signer.load(str(tmp_path / "own.key"), "command"), chain_of(world), checkpoints.BEGIN)
    [fault] = told()
    assert "which was never one of this server's" in fault
    row = AuditCheckpoint.objects.get()
    unguarded(f"UPDATE fleet_auditcheckpoint SET key_id = '{Signer.load(str(keys / 'command.key'), 'command').key_id}'")
    [fault] = told()
    assert "the signature of its head is wrong" in fault
    assert row.sequence == 3


def test_one_site_is_proved_alone(world: World, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    write(world)
    audit.record("test", "x", site=world.school, actor="x")
    witnessing.witness()
    write(world, 1)
    unguarded(f"DELETE FROM fleet_auditentry WHERE site_id = {world.school.pk}")
    call_command("audit", "verify", "--site", "clubroom", "--book", str(settings.SENDER_BOOK))
    assert f"{chain_of(world)}: 4 entries, signed up to #3, head " in capsys.readouterr().out
    with pytest.raises(CommandError):
        call_command("audit", "verify", "--site", "school")


def test_what_is_no_book_is_named(world: World, tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.sqlite3", tmp_path / "text"):
        (tmp_path / "text").write_text("no database")
        with pytest.raises(OperatorError, match=f"The sender's book {path} cannot be read"):
            checkpoints.read_book(path)
        with pytest.raises(CommandError, match="FLEET_SENDER_BOOK"):
            call_command("audit", "verify", "--book", str(path))


def test_reading_the_book_changes_nothing_of_it(world: World, settings: Settings) -> None:
    write(world)
    witnessing.witness()
    before = settings.SENDER_BOOK.read_bytes()
    checkpoints.read_book(settings.SENDER_BOOK)
    assert settings.SENDER_BOOK.read_bytes() == before
    with Book.at(settings.SENDER_BOOK) as book:
        assert checkpoints.read_book(settings.SENDER_BOOK) == book.heads()


def test_restores_are_under_the_signed_heads_too(world: World, settings: Settings) -> None:
    make_restore(world, make_client(world.clubroom))
    witnessing.witness()
    unguarded("UPDATE agents_homerestore SET files = 0")
    rewrite(chain_of(world), lambda entry: True, reseal=True)
    assert list(audit.verify()) == [], "sealed anew"
    assert told() != []
