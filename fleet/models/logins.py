from django.db import models
from django.utils import timezone


class FailedLogin(models.Model):
    """How often a login failed lately; ``fleet.logins`` counts by name and address, and by address alone."""

    key = models.CharField(max_length=64, primary_key=True, help_text="SHA-256 of what is counted.")
    count = models.PositiveIntegerField(default=0)
    since = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["-since"]

    def __str__(self) -> str:
        return f"{self.count} since {self.since:%Y-%m-%d %H:%M}"
