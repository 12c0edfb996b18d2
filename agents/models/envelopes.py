import json
from typing import Any

from django.db import models

from agents.models.commands import Command
from agents.models.sessions import BootSession
from fleet.querysets import ScopedQuerySet


class Envelope(models.Model):
    """What the sender signed for a command: the exact bytes, for which boot of its client, under which number, and when. Append-only.

    For a command to power on it is a permit (``agents.power.permits``), which is for no boot and has no number.

    It has a table of its own, to which nobody but the sender may add; and what becomes of a command is then written into a row so small that its
    next version lies beside it.
    """

    SITE = "command__client__site"

    command = models.OneToOneField(Command, primary_key=True, on_delete=models.PROTECT, related_name="envelope")
    session = models.ForeignKey(BootSession, null=True, on_delete=models.PROTECT, related_name="envelopes")
    sequence = models.PositiveBigIntegerField(null=True)
    body = models.BinaryField()
    signature = models.BinaryField()
    key_id = models.CharField(max_length=40)
    signed_at = models.DateTimeField()

    objects = ScopedQuerySet["Envelope"].as_manager()

    class Meta:
        ordering = ["-signed_at"]
        constraints = [
            # Older ones were counted for each client by itself; from then on they are milliseconds since 1970, or what follows the last.
            models.UniqueConstraint(
                fields=["sequence"], condition=models.Q(sequence__gte=10**12), name="envelope_sequence_unique"
            ),
        ]
        indexes = [models.Index(fields=["signed_at"], name="envelope_by_signed_at")]

    def __str__(self) -> str:
        return f"envelope of the {self.command}"

    @property
    def args(self) -> dict[str, Any]:
        return args_of(self.body)


def args_of(body: "bytes | memoryview | None") -> dict[str, Any]:
    """The arguments in an envelope; none where there is no envelope, or where it is none: a permit, or what somebody put there."""
    try:
        found = json.loads(bytes(body or b""))["args"]
    except (ValueError, TypeError, LookupError):
        return {}
    return found if isinstance(found, dict) else {}
