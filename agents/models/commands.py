import uuid
from collections.abc import Mapping, Sequence
from typing import Self

from django.conf import settings
from django.db import models
from django.utils import timezone

from agents.daemon import protocol
from agents.models.rollouts import Rollout
from fleet.models import Client, Site
from fleet.querysets import ScopedQuerySet
from fleet.transitions import status_constraint


class Verb(models.TextChoices):
    """The closed set of what is ordered of a client. The daemon knows the same, but for WAKE, which others do to it (RELAY)."""

    RESTART = protocol.RESTART, "Restart"
    POWEROFF = protocol.POWEROFF, "Power down"
    CYCLE = protocol.CYCLE, "Cycle"
    CAPTURE = protocol.CAPTURE, "Capture the home"
    MESSAGE = protocol.MESSAGE, "Show a message"
    WAKE = "wake", "Power on"
    RELAY = protocol.RELAY, "Send wake packets"


class Order(models.Model):
    """What a person asked for: one verb, for one client or a selection, with a reason.

    ``args`` are those of docs/protocol.md that a person chooses: ``warn_s``, ``text``, ``more``, ``seconds``. With ``beyond_cap`` it is not
    throttled by the site's caps, and nothing of it is signed before somebody else than who ordered it has approved.
    """

    SITE = "site"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    site = models.ForeignKey(Site, on_delete=models.PROTECT, related_name="orders")
    verb = models.CharField(max_length=12, choices=Verb.choices)
    reason = models.CharField(max_length=200)
    ordered_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    ordered_at = models.DateTimeField(default=timezone.now)
    rollout = models.ForeignKey(Rollout, null=True, on_delete=models.SET_NULL, related_name="orders", editable=False)
    args = models.JSONField(default=dict, blank=True)
    force = models.BooleanField(default=False, help_text="Also of clients with a local hold.")
    beyond_cap = models.BooleanField(default=False, help_text="Faster than the site's caps; needs a second person.")
    approved_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+", editable=False
    )
    approved_at = models.DateTimeField(null=True, editable=False)

    objects = ScopedQuerySet["Order"].as_manager()

    class Meta:
        ordering = ["-ordered_at"]
        constraints = [
            status_constraint(Verb, "order_verb_declared", "verb"),
            models.CheckConstraint(
                condition=models.Q(approved_by=None) | ~models.Q(approved_by=models.F("ordered_by")),
                name="order_approved_by_another",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_verb_display()} ordered {self.ordered_at:%Y-%m-%d %H:%M}"


class CommandStatus(models.TextChoices):
    QUEUED = "queued", "Queued"
    SENT = "sent", "Sent"
    ACCEPTED = "accepted", "Accepted"
    SUCCEEDED = "succeeded", "Succeeded"
    FAILED = "failed", "Failed"
    REFUSED = "refused", "Refused"
    EXPIRED = "expired", "Expired"
    CANCELLED = "cancelled", "Cancelled"
    LOST = "lost", "Lost"


class CommandQuerySet(ScopedQuerySet["Command"]):
    def open(self, *statuses: CommandStatus) -> Self:
        """Those that have not ended, or that are in one of these ``statuses``, which are among ``Command.OPEN``.

        Found by the index of what is open. There is none of statuses, so whoever asks for one alone reads all commands there ever were.
        """
        return self.filter(is_open=True, status__in=statuses) if statuses else self.filter(is_open=True)


class Command(models.Model):
    """One order to one client, and what became of it. It always ends in a terminal status.

        queued → sent → accepted → succeeded | failed | lost
           │       └──→ refused | expired | cancelled
           └──────────→ cancelled | expired

    SENT means signed (``Envelope``), with its audit entry committed before. ACCEPTED means the client said so before acting. LOST means
    accepted, but nothing proved the effect in time. One that is sent can be cancelled, for a client asks before it acts.
    """

    SITE = "client__site"
    TRANSITIONS: Mapping[str, Sequence[str]] = {
        CommandStatus.SENT: [CommandStatus.QUEUED],
        CommandStatus.ACCEPTED: [CommandStatus.SENT],
        CommandStatus.SUCCEEDED: [CommandStatus.SENT, CommandStatus.ACCEPTED],
        CommandStatus.FAILED: [CommandStatus.QUEUED, CommandStatus.SENT, CommandStatus.ACCEPTED],
        CommandStatus.REFUSED: [CommandStatus.SENT, CommandStatus.ACCEPTED],
        CommandStatus.EXPIRED: [CommandStatus.QUEUED, CommandStatus.SENT],
        CommandStatus.CANCELLED: [CommandStatus.QUEUED, CommandStatus.SENT],
        CommandStatus.LOST: [CommandStatus.ACCEPTED],
    }
    OPEN = (CommandStatus.QUEUED, CommandStatus.SENT, CommandStatus.ACCEPTED)

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    order = models.ForeignKey(Order, on_delete=models.PROTECT, related_name="commands")
    client = models.ForeignKey(  # by the index command_newest_of_client
        Client, on_delete=models.PROTECT, related_name="commands", db_index=False
    )
    verb = models.CharField(max_length=12, choices=Verb.choices)
    args = models.JSONField(default=dict, help_text="Of a relay's own; others have those of their order.")
    status = models.CharField(max_length=10, choices=CommandStatus.choices, default=CommandStatus.QUEUED)
    queued_at = models.DateTimeField(default=timezone.now)
    sent_at = models.DateTimeField(null=True)
    accepted_at = models.DateTimeField(null=True)
    acts_at = models.DateTimeField(null=True, help_text="When the client acts, who warns its user first.")
    finished_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField()
    reason = models.CharField(max_length=300, blank=True, help_text="Why it ended as it did.")
    result = models.JSONField(default=dict)
    # For the index of command_one_open_per_client: it need not learn of each step between queued and accepted.
    is_open = models.GeneratedField(
        expression=models.ExpressionWrapper(
            models.Q(status__in=["queued", "sent", "accepted"]), output_field=models.BooleanField()
        ),
        output_field=models.BooleanField(),
        db_persist=True,
    )

    objects = CommandQuerySet.as_manager()

    class Meta:
        ordering = ["-queued_at"]
        constraints = [
            status_constraint(CommandStatus, "command_status_declared"),
            status_constraint(Verb, "command_verb_declared", "verb"),
            models.UniqueConstraint(
                fields=["client"], condition=models.Q(is_open=True), name="command_one_open_per_client"
            ),
        ]
        indexes = [models.Index(fields=["client", "queued_at"], name="command_newest_of_client")]

    def __str__(self) -> str:
        return f"{self.get_verb_display().lower()} of {self.client}"
