from django.conf import settings
from django.core.validators import MinValueValidator
from django.db import models
from django.db.models.functions import Coalesce
from django.utils import timezone

from agents.models.commands import Verb
from fleet.models import Site
from fleet.querysets import ScopedQuerySet
from fleet.transitions import status_constraint

_some = MinValueValidator(1)


class Cap(models.Model):
    """How much of one verb a site bears: so many a minute, so many under way at once. The sender keeps to it.

    For mains that cannot take a hall switched on at once, and storage that cannot give it all its homes.
    """

    SITE = "site"

    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="caps")
    verb = models.CharField(max_length=12, choices=Verb.choices)
    per_minute = models.PositiveIntegerField(
        null=True, blank=True, validators=[_some], help_text="Commands signed within sixty seconds. Empty: any number."
    )
    at_once = models.PositiveIntegerField(
        null=True, blank=True, validators=[_some], help_text="Commands under way at one time. Empty: any number."
    )

    objects = ScopedQuerySet["Cap"].as_manager()

    class Meta:
        ordering = ["site", "verb"]
        constraints = [
            models.UniqueConstraint(fields=["site", "verb"], name="cap_one_per_verb_and_site"),
            status_constraint(Verb, "cap_verb_declared", "verb"),
            models.CheckConstraint(
                # A comparison with what is empty is neither true nor false, which a constraint takes for true.
                condition=models.Q(per_minute__isnull=False) | models.Q(at_once__isnull=False),
                name="cap_says_something",
                violation_error_message="Say how many a minute, or how many at once.",
            ),
            models.CheckConstraint(
                condition=(models.Q(per_minute=None) | models.Q(per_minute__gte=1))
                & (models.Q(at_once=None) | models.Q(at_once__gte=1)),
                name="cap_is_no_freeze",
            ),
        ]

    def __str__(self) -> str:
        bounds = [f"{self.per_minute} a minute"] if self.per_minute else []
        bounds += [f"{self.at_once} at once"] if self.at_once else []
        return f"{self.get_verb_display()} at {self.site}: {', '.join(bounds)}"


class Freeze(models.Model):
    """Nothing is signed while one stands: at one site, or at all. What waits goes on when it is lifted, or expires."""

    SITE = "site"
    SHARED = True

    site = models.ForeignKey(
        Site, null=True, blank=True, on_delete=models.CASCADE, related_name="freezes", help_text="Empty: all sites."
    )
    reason = models.CharField(max_length=200)
    frozen_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    frozen_at = models.DateTimeField(default=timezone.now)
    lifted_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    lifted_at = models.DateTimeField(null=True)

    objects = ScopedQuerySet["Freeze"].as_manager()

    class Meta:
        ordering = ["-frozen_at"]
        constraints = [
            models.UniqueConstraint(
                Coalesce("site", 0), condition=models.Q(lifted_at=None), name="freeze_one_per_site"
            ),
        ]

    def __str__(self) -> str:
        return f"freeze of {self.site or 'all sites'} since {self.frozen_at:%Y-%m-%d %H:%M}"
