import uuid
from collections.abc import Mapping, Sequence

from django.conf import settings
from django.core.validators import MinValueValidator
from django.db import models
from django.utils import timezone

from fleet.models import ClientClass
from fleet.querysets import ScopedQuerySet
from fleet.transitions import status_constraint


class RolloutStatus(models.TextChoices):
    RUNNING = "running", "Running"
    DONE = "done", "Done"
    STOPPED = "stopped", "Stopped"


class Rollout(models.Model):
    """Restarts of a class's clients that run an older version: a few at a time, each once, and only while nobody uses it.

    running → done | stopped
    """

    SITE = "client_class__site"
    TRANSITIONS: Mapping[str, Sequence[str]] = {
        RolloutStatus.DONE: [RolloutStatus.RUNNING],
        RolloutStatus.STOPPED: [RolloutStatus.RUNNING],
    }

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    client_class = models.ForeignKey(ClientClass, on_delete=models.CASCADE, related_name="rollouts")
    status = models.CharField(
        max_length=8, choices=RolloutStatus.choices, default=RolloutStatus.RUNNING, editable=False
    )
    at_once = models.PositiveSmallIntegerField(default=1, validators=[MinValueValidator(1)])
    reason = models.CharField(max_length=200)
    ordered_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    started_at = models.DateTimeField(default=timezone.now)
    ended_at = models.DateTimeField(null=True)
    outcome = models.CharField(max_length=300, blank=True)

    objects = ScopedQuerySet["Rollout"].as_manager()

    class Meta:
        ordering = ["-started_at"]
        constraints = [
            status_constraint(RolloutStatus, "rollout_status_declared"),
            models.UniqueConstraint(
                fields=["client_class"], condition=models.Q(status="running"), name="rollout_one_running_per_class"
            ),
            models.CheckConstraint(condition=models.Q(at_once__gte=1), name="rollout_goes_on"),
        ]

    def __str__(self) -> str:
        return f"rollout to {self.client_class} since {self.started_at:%Y-%m-%d %H:%M}"
