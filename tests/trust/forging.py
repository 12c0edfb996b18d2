"""What somebody who owns the database can do to it: all of it, with everything that guards it taken away first."""

import hashlib
from collections.abc import Callable
from typing import Any

from django.apps import apps
from django.db import connection

from agents.models import Command, CommandStatus, Envelope
from fleet import audit
from fleet.models import AuditEntry, AuditHead

GUARDED = ("fleet_auditentry", "agents_homerestore", "agents_envelope", "fleet_auditcheckpoint")


def unguarded(*statements: str) -> None:
    """Run ``statements`` without the triggers of append-only tables."""
    connection.check_constraints()  # or PostgreSQL would have something to look at yet, and let no trigger go
    with connection.cursor() as cursor:
        for table in GUARDED:
            if connection.vendor == "sqlite":
                for action in ("update", "delete"):
                    cursor.execute(f"DROP TRIGGER IF EXISTS {table}_no_{action}")
            else:
                cursor.execute(f"DROP TRIGGER IF EXISTS {table}_append_only ON {table}")
        for statement in statements:
            cursor.execute(statement)


def change_signed(command: Command, **fields: Any) -> None:
    """Change what the sender signed."""
    unguarded()
    Envelope.objects.filter(command=command).update(**fields)


def remove_signed() -> None:
    """Take away all that was signed, with its commands."""
    signed = list(Envelope.objects.values_list("command", flat=True))
    unguarded("DELETE FROM agents_envelope")
    Command.objects.filter(pk__in=signed).delete()


def forget_signed(*commands: Command) -> None:
    """As if the sender had never signed these: they wait."""
    unguarded()
    Envelope.objects.filter(command__in=commands).delete()
    Command.objects.filter(pk__in=[command.pk for command in commands]).update(status=CommandStatus.QUEUED)


def rewrite(chain: str, keep: Callable[[AuditEntry], bool], *, reseal: bool = False) -> None:
    """Write all of a chain anew, right in itself, with its head: the entries that ``keep`` wants, changed as it likes."""
    entries = list(AuditEntry.objects.filter(chain=chain).order_by("sequence"))
    unguarded(f"DELETE FROM fleet_auditentry WHERE chain = '{chain}'")
    previous, sequence = "", 0
    for entry in entries:
        if not keep(entry):
            continue
        sequence += 1
        if reseal and entry.subject_seal:
            row: Any = apps.get_model(entry.subject_type)._default_manager.get(pk=entry.subject_id)
            entry.subject_seal = hashlib.sha256(audit.canonical(row.sealed())).hexdigest()
        entry.pk, entry.sequence, entry.previous = None, sequence, previous
        entry.digest = previous = audit._digest(entry)
        entry.save(force_insert=True)
    AuditHead.objects.filter(chain=chain).update(sequence=sequence, digest=previous)
