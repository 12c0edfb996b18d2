"""What is wrong with a version, or missing in its recipe, as somebody met it: a check in a virtual PC, or the PCs that run it."""

from collections.abc import Mapping, Sequence

from django.conf import settings
from django.db import models
from django.utils import timezone

from fleet.models import Client
from fleet.querysets import ScopedQuerySet
from fleet.transitions import status_constraint


class FindingSource(models.TextChoices):
    CHECKED = "checked", "Check in a virtual PC"
    OBSERVED = "observed", "Running PCs"


class FindingKind(models.TextChoices):
    EROFS = "erofs", "Read-only, and something wants to write"
    EACCES = "eacces", "Permission denied"
    UNIT = "unit", "Unit failed"
    WRITTEN = "written", "Written, and no rule names it"


class FindingStatus(models.TextChoices):
    OPEN = "open", "Open"
    ACCEPTED = "accepted", "Accepted"
    DISMISSED = "dismissed", "Dismissed"


class Finding(models.Model):
    """One path or unit of one version; met again, it is the same finding. What was decided stays decided.

    open → accepted     (its rule is in the recipe)
      └──→ dismissed
    """

    SITE = "version__image__site"
    SHARED = True
    TRANSITIONS: Mapping[str, Sequence[str]] = {
        FindingStatus.ACCEPTED: [FindingStatus.OPEN],
        FindingStatus.DISMISSED: [FindingStatus.OPEN],
    }

    version = models.ForeignKey("images.ImageVersion", on_delete=models.CASCADE, related_name="findings")
    source = models.CharField(max_length=10, choices=FindingSource.choices)
    kind = models.CharField(max_length=10, choices=FindingKind.choices)
    subject = models.CharField(max_length=400, help_text="The path, or the unit.")
    rule = models.CharField(
        max_length=400, blank=True, help_text="The volatile rule that would cure it; none is known if empty."
    )
    detail = models.TextField(blank=True, help_text="Who met it, and what was said.")
    bytes = models.PositiveBigIntegerField(default=0, help_text="The most that was found there.")
    clients = models.ManyToManyField(Client, blank=True, related_name="+", help_text="The PCs that told of it.")
    status = models.CharField(max_length=10, choices=FindingStatus.choices, default=FindingStatus.OPEN)
    first_at = models.DateTimeField(default=timezone.now)
    last_at = models.DateTimeField(default=timezone.now)
    decided_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    decided_at = models.DateTimeField(null=True)

    objects = ScopedQuerySet["Finding"].as_manager()

    class Meta:
        ordering = ["version", "kind", "subject"]
        constraints = [
            models.UniqueConstraint(
                fields=["version", "source", "kind", "subject"], name="finding_met_again_is_the_same"
            ),
            status_constraint(FindingSource, "finding_source_declared", "source"),
            status_constraint(FindingKind, "finding_kind_declared", "kind"),
            status_constraint(FindingStatus, "finding_status_declared"),
        ]

    def __str__(self) -> str:
        return f"{self.subject} in {self.version}"
