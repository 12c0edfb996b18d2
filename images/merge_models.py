"""Files that the site and an upgrade have both changed, and what somebody decided of each."""

from collections.abc import Mapping, Sequence

from django.conf import settings
from django.db import models
from django.utils import timezone

from fleet.querysets import ScopedQuerySet
from fleet.transitions import status_constraint


class MergeStatus(models.TextChoices):
    OPEN = "open", "To be decided"
    KEPT = "kept", "The site's stays"
    TAKEN = "taken", "Another was taken"


class FileMerge(models.Model):
    """One path of a version. The version has the site's file; what is taken instead makes a derived version.

        open → kept | taken

    The texts are here, not in the store: they are small, and wanted as long as the row is.
    """

    SITE = "version__image__site"
    SHARED = True
    TRANSITIONS: Mapping[str, Sequence[str]] = {
        MergeStatus.KEPT: [MergeStatus.OPEN],
        MergeStatus.TAKEN: [MergeStatus.OPEN],
    }

    version = models.ForeignKey("images.ImageVersion", on_delete=models.CASCADE, related_name="merges")
    path = models.CharField(max_length=400)
    mode = models.PositiveSmallIntegerField(default=0o644)
    base = models.TextField(null=True, help_text="What the package had before; null where nobody noted it.")  # noqa: DJ001
    site = models.TextField(blank=True, help_text="What the site has.")
    package = models.TextField(blank=True, help_text="What the package has now.")
    merged = models.TextField(blank=True, help_text="Both changes in one; with marks where they contradict each other.")
    is_clean = models.BooleanField(default=False, help_text="Nothing of the merge has to be decided by hand.")
    status = models.CharField(max_length=10, choices=MergeStatus.choices, default=MergeStatus.OPEN)
    created_at = models.DateTimeField(default=timezone.now)
    decided_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    decided_at = models.DateTimeField(null=True)

    objects = ScopedQuerySet["FileMerge"].as_manager()

    class Meta:
        ordering = ["version", "path"]
        constraints = [
            models.UniqueConstraint(fields=["version", "path"], name="merge_once_per_path"),
            status_constraint(MergeStatus, "merge_status_declared"),
        ]

    def __str__(self) -> str:
        return f"{self.path} in {self.version}"
