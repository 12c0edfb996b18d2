import uuid
from collections.abc import Mapping, Sequence

from django.db import models
from django.utils import timezone

from fleet.models import Client, ClientClass
from fleet.querysets import ScopedQuerySet
from fleet.transitions import status_constraint
from images.models import Release


class BootToken(models.Model):
    """A single-use right to ask for a boot plan, bound to one client. Only its hash is kept."""

    SITE = "client__site"

    client = models.ForeignKey(Client, on_delete=models.CASCADE, related_name="boot_tokens")
    digest = models.CharField(max_length=64, unique=True)
    kernel = models.CharField(max_length=80, blank=True, help_text="Release of the kernel that was offered with it.")
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)
    heard_at = models.DateTimeField(null=True, help_text="When its initrd first asked for a plan.")
    release = models.ForeignKey(
        Release, null=True, on_delete=models.SET_NULL, related_name="+", help_text="Whose kernel was offered with it."
    )

    objects = ScopedQuerySet["BootToken"].as_manager()

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"boot token of {self.client}"


class SessionStatus(models.TextChoices):
    BOOTING = "booting", "Booting"
    OPEN = "open", "Open"
    CLOSED = "closed", "Closed"
    SUPERSEDED = "superseded", "Superseded"
    REVOKED = "revoked", "Revoked"
    LOST = "lost", "Lost"


class Verdict(models.TextChoices):
    GOOD = "good", "Good"
    BAD = "bad", "Bad"


class BootSession(models.Model):
    """One boot of one client.

        booting → open → closed       (the system went down, and said so)
           │        ├──→ superseded   (a younger boot of the same client)
           │        ├──→ revoked      (somebody wants to hear no more of it)
           └────────┴──→ lost         (silence)

    A lost session that is heard of again is open again: its poll came late, nothing else. So is one that closed, for what it said did not
    come about, or its silence was the network's. A younger boot ends either for good.
    """

    SITE = "client__site"
    TRANSITIONS: Mapping[str, Sequence[str]] = {
        SessionStatus.OPEN: [SessionStatus.BOOTING, SessionStatus.OPEN, SessionStatus.CLOSED, SessionStatus.LOST],
        SessionStatus.CLOSED: [SessionStatus.BOOTING, SessionStatus.OPEN, SessionStatus.LOST],
        SessionStatus.SUPERSEDED: [SessionStatus.BOOTING, SessionStatus.OPEN, SessionStatus.LOST],
        SessionStatus.REVOKED: [SessionStatus.BOOTING, SessionStatus.OPEN, SessionStatus.LOST],
        SessionStatus.LOST: [SessionStatus.BOOTING, SessionStatus.OPEN],
    }
    LIVE = (SessionStatus.BOOTING, SessionStatus.OPEN)

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    client = models.ForeignKey(Client, on_delete=models.CASCADE, related_name="sessions")
    boot_id = models.UUIDField(help_text="/proc/sys/kernel/random/boot_id of the client.")
    bearer_digest = models.CharField(max_length=64, unique=True)
    status = models.CharField(max_length=12, choices=SessionStatus.choices, default=SessionStatus.BOOTING)
    client_class = models.ForeignKey(ClientClass, null=True, on_delete=models.SET_NULL, related_name="+")
    release = models.ForeignKey(Release, null=True, on_delete=models.SET_NULL, related_name="sessions")
    protocol = models.PositiveSmallIntegerField(default=1, help_text="That its daemon speaks.")
    command_keys = models.TextField(blank=True, default="", help_text="Ids of those its daemon was told last.")
    session_keys = models.TextField(blank=True, default="", help_text="Ids of those by which it knows this server.")
    facts = models.JSONField(default=dict)
    planned_at = models.DateTimeField(default=timezone.now)
    opened_at = models.DateTimeField(null=True)
    last_seen = models.DateTimeField(default=timezone.now)
    ended_at = models.DateTimeField(null=True)
    ready_at = models.DateTimeField(null=True, help_text="When the daemon first said that its client is ready.")
    verdict = models.CharField(max_length=4, blank=True, choices=Verdict.choices, help_text="Of this boot.")

    objects = ScopedQuerySet["BootSession"].as_manager()

    class Meta:
        ordering = ["-planned_at"]
        constraints = [
            status_constraint(SessionStatus, "session_status_declared"),
            models.CheckConstraint(
                condition=models.Q(verdict__in=["", *Verdict.values]), name="session_verdict_declared"
            ),
            models.UniqueConstraint(
                fields=["client"],
                condition=models.Q(status__in=["booting", "open"]),
                name="session_one_live_per_client",
            ),
        ]
        indexes = [
            # What every gateway asks every few seconds: whose bearers are good no more.
            models.Index(
                fields=["ended_at"],
                condition=models.Q(status__in=["superseded", "revoked"]),
                name="session_cut_off",
            ),
            # There is none of statuses, which would find the live ones on SQLite, too. With statistics from when nobody was connected PostgreSQL
            # takes it for the way to one or two, and then goes it for each client of an order.
        ]

    def __str__(self) -> str:
        return f"session of {self.client} since {self.planned_at:%Y-%m-%d %H:%M}"
