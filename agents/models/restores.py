from typing import Any

from django.db import models

from agents.models.commands import Command
from fleet.models import Client, Site
from fleet.querysets import ScopedQuerySet
from fleet.transitions import status_constraint


class RestoreResult(models.TextChoices):
    RESTORED = "restored", "Restored"
    FAILED = "failed", "Failed"
    REFUSED = "refused", "Refused"
    LOST = "lost", "Lost"


class HomeRestore(models.Model):
    """One restore of a home directory, successful or not: append-only, and sealed into the site's audit chain.

    Names stand beside the keys, so that a row says the same when classes and clients were renamed. Digests are tree digests
    (docs/protocol.md) except ``template``, which is the SHA-256 of the template's squashfs. Phases are in milliseconds.
    """

    SITE = "site"

    site = models.ForeignKey(  # by the index of restore_newest_of_site
        Site, on_delete=models.PROTECT, related_name="restores", db_index=False
    )
    client = models.ForeignKey(Client, on_delete=models.PROTECT, related_name="restores")
    command = models.OneToOneField(Command, on_delete=models.PROTECT, related_name="restore")
    at = models.DateTimeField()
    client_name = models.CharField(max_length=100)
    class_name = models.CharField(max_length=80)
    asked_by = models.CharField(max_length=150)
    reason = models.CharField(max_length=200)
    result = models.CharField(max_length=10, choices=RestoreResult.choices)
    explanation = models.CharField(max_length=300, blank=True)
    template = models.CharField(max_length=64, blank=True)
    expected = models.CharField(max_length=64, blank=True, help_text="Tree digest of the template.")
    before = models.CharField(max_length=64, blank=True, help_text="Tree digest of the home thrown away.")
    after = models.CharField(max_length=64, blank=True, help_text="Tree digest of the home restored.")
    files = models.PositiveBigIntegerField(null=True, help_text="Entries thrown away.")
    bytes = models.PositiveBigIntegerField(null=True, help_text="Bytes thrown away.")
    killed = models.PositiveIntegerField(null=True, help_text="Processes killed.")
    phases_ms = models.JSONField(default=dict)

    objects = ScopedQuerySet["HomeRestore"].as_manager()

    class Meta:
        ordering = ["-at", "-id"]
        constraints = [
            status_constraint(RestoreResult, "restore_result_declared", "result"),
            models.CheckConstraint(
                condition=~models.Q(result="restored") | (models.Q(after=models.F("expected")) & ~models.Q(after="")),
                name="restore_restored_means_equal",
            ),
        ]
        indexes = [models.Index(fields=["site", "-at", "-id"], name="restore_newest_of_site")]  # for the board

    def __str__(self) -> str:
        return f"restore of {self.client_name} at {self.at:%Y-%m-%d %H:%M:%S}"

    def sealed(self) -> dict[str, Any]:
        """What the audit chain seals: every column."""
        return {
            "site": self.site_id,
            "client": str(self.client_id),
            "command": str(self.command_id),
            "at": self.at,
            "client_name": self.client_name,
            "class_name": self.class_name,
            "asked_by": self.asked_by,
            "reason": self.reason,
            "result": self.result,
            "explanation": self.explanation,
            "template": self.template,
            "expected": self.expected,
            "before": self.before,
            "after": self.after,
            "files": self.files,
            "bytes": self.bytes,
            "killed": self.killed,
            "phases_ms": self.phases_ms,
        }
