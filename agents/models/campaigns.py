from collections.abc import Mapping, Sequence

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models

from agents.models.commands import Command, Order
from fleet.models import Client
from fleet.querysets import ScopedQuerySet
from fleet.transitions import status_constraint

_percent = [MinValueValidator(0), MaxValueValidator(100)]


class CampaignStatus(models.TextChoices):
    AWAITING = "awaiting", "Awaiting approval"
    SCHEDULED = "scheduled", "Scheduled"
    RUNNING = "running", "Running"
    PAUSED = "paused", "Paused"
    DONE = "done", "Done"
    STOPPED = "stopped", "Stopped"
    ABORTED = "aborted", "Aborted"


class Offline(models.TextChoices):
    """What becomes of a client that is not connected when its turn comes."""

    SKIP = "skip", "Leave it out"
    WAIT = "wait", "Wait for it"
    FAIL = "fail", "Count it as failed"


class WaveBy(models.TextChoices):
    ALL = "all", "All in one wave"
    ROW = "row", "A row of seats a wave"
    SHARE = "share", "A share of them a wave"


class OnFailure(models.TextChoices):
    PAUSE = "pause", "Pause, and ask"
    ABORT = "abort", "Abort"


class Campaign(models.Model):
    """An order to many clients, carried out in waves, watched and stoppable. What is ordered, why and by whom says its order.

        awaiting → scheduled → running ⇄ paused
            │          │          ├──→ done       (every target has ended)
            │          │          ├──→ aborted    (a threshold was passed)
            └──────────┴──────────┴──→ stopped    (by a person, also while paused)

    ``selection`` says whom (``agents.selecting``); it becomes targets when the campaign starts, not before. Thresholds are percent of
    those of a wave that carried it out or should have (who was left out is none), and count from ``judged_after`` of them on. A campaign
    that is done, stopped or aborted has ``ended_at`` once the last command that a client had accepted is over.
    """

    SITE = "order__site"
    TRANSITIONS: Mapping[str, Sequence[str]] = {
        CampaignStatus.SCHEDULED: [CampaignStatus.AWAITING],
        CampaignStatus.RUNNING: [CampaignStatus.SCHEDULED, CampaignStatus.PAUSED],
        CampaignStatus.PAUSED: [CampaignStatus.RUNNING],
        CampaignStatus.DONE: [CampaignStatus.RUNNING, CampaignStatus.PAUSED],
        CampaignStatus.STOPPED: [
            CampaignStatus.AWAITING,
            CampaignStatus.SCHEDULED,
            CampaignStatus.RUNNING,
            CampaignStatus.PAUSED,
        ],
        CampaignStatus.ABORTED: [CampaignStatus.RUNNING],
    }
    LIVE = (CampaignStatus.AWAITING, CampaignStatus.SCHEDULED, CampaignStatus.RUNNING, CampaignStatus.PAUSED)

    order = models.OneToOneField(Order, primary_key=True, on_delete=models.PROTECT, related_name="campaign")
    status = models.CharField(
        max_length=10, choices=CampaignStatus.choices, default=CampaignStatus.RUNNING, editable=False
    )
    selection = models.JSONField(default=dict)
    starts_at = models.DateTimeField(null=True, blank=True, help_text="Empty: at once.")
    expires_at = models.DateTimeField(help_text="What has not been sent by then is sent no more.")
    offline = models.CharField(max_length=4, choices=Offline.choices, default=Offline.SKIP)
    wait_until = models.DateTimeField(null=True, blank=True, help_text="For those offline. Empty: until it expires.")
    canary = models.PositiveIntegerField(default=0, help_text="How many go first, alone. 0: none.")
    wave_by = models.CharField(max_length=5, choices=WaveBy.choices, default=WaveBy.ALL)
    share = models.PositiveSmallIntegerField(
        default=100, validators=[MinValueValidator(1), MaxValueValidator(100)], help_text="Percent of all, a wave."
    )
    spread_s = models.PositiveIntegerField(default=0, help_text="Over which the clients of a wave are spread.")
    success_percent = models.PositiveSmallIntegerField(
        default=0, validators=_percent, help_text="That must have succeeded before the next wave begins."
    )
    failed_percent = models.PositiveSmallIntegerField(
        default=100, validators=_percent, help_text="More than so many failed: it pauses or aborts."
    )
    judged_after = models.PositiveIntegerField(
        default=1, validators=[MinValueValidator(1)], help_text="So many must have ended before that counts."
    )
    on_failure = models.CharField(max_length=5, choices=OnFailure.choices, default=OnFailure.PAUSE)

    wave = models.PositiveIntegerField(default=0, editable=False, help_text="Which is under way, from 1 on.")
    wave_at = models.DateTimeField(null=True, editable=False)
    judged_from = models.DateTimeField(
        null=True,
        editable=False,
        help_text="Whose ends since then count: when the wave began, or a person said to go on.",
    )
    paused_at = models.DateTimeField(null=True, editable=False)
    started_at = models.DateTimeField(null=True, editable=False, help_text="When its targets were made.")
    ended_at = models.DateTimeField(null=True, editable=False, help_text="When the last of them had ended.")
    outcome = models.CharField(max_length=300, blank=True, editable=False)

    objects = ScopedQuerySet["Campaign"].as_manager()

    class Meta:
        ordering = ["-order__ordered_at"]
        constraints = [
            status_constraint(CampaignStatus, "campaign_status_declared"),
            status_constraint(Offline, "campaign_offline_declared", "offline"),
            status_constraint(WaveBy, "campaign_wave_by_declared", "wave_by"),
            status_constraint(OnFailure, "campaign_on_failure_declared", "on_failure"),
            models.CheckConstraint(
                condition=models.Q(success_percent__lte=100, failed_percent__lte=100, share__range=(1, 100)),
                name="campaign_percents",
            ),
            models.CheckConstraint(condition=models.Q(judged_after__gte=1), name="campaign_judges_somebody"),
        ]

    def __str__(self) -> str:
        return f"campaign {self.order.get_verb_display().lower()} of {self.order.ordered_at:%Y-%m-%d %H:%M}"


class TargetStatus(models.TextChoices):
    WAITING = "waiting", "Waiting"
    ORDERED = "ordered", "Ordered"
    SUCCEEDED = "succeeded", "Succeeded"
    FAILED = "failed", "Failed"
    REFUSED = "refused", "Refused"
    EXPIRED = "expired", "Expired"
    CANCELLED = "cancelled", "Cancelled"
    LOST = "lost", "Lost"
    SKIPPED = "skipped", "Left out"


class Target(models.Model):
    """One client of a campaign. It always ends, with the reason: that of its command, or why it never had one.

        waiting → ordered → succeeded | failed | refused | expired | cancelled | lost
           └──→ skipped | failed | expired | cancelled

    While it is ordered its command says how far it is.
    """

    SITE = "campaign__order__site"
    TRANSITIONS: Mapping[str, Sequence[str]] = {
        TargetStatus.ORDERED: [TargetStatus.WAITING],
        TargetStatus.SUCCEEDED: [TargetStatus.ORDERED],
        TargetStatus.FAILED: [TargetStatus.WAITING, TargetStatus.ORDERED],
        TargetStatus.REFUSED: [TargetStatus.ORDERED],
        TargetStatus.EXPIRED: [TargetStatus.WAITING, TargetStatus.ORDERED],
        TargetStatus.CANCELLED: [TargetStatus.WAITING, TargetStatus.ORDERED],
        TargetStatus.LOST: [TargetStatus.ORDERED],
        TargetStatus.SKIPPED: [TargetStatus.WAITING],
    }
    OPEN = (TargetStatus.WAITING, TargetStatus.ORDERED)

    campaign = models.ForeignKey(Campaign, on_delete=models.CASCADE, related_name="targets")
    client = models.ForeignKey(Client, on_delete=models.PROTECT, related_name="targets")
    wave = models.PositiveIntegerField(help_text="From 1 on.")
    place = models.PositiveIntegerField(help_text="Within its wave, from 0 on.")
    status = models.CharField(max_length=10, choices=TargetStatus.choices, default=TargetStatus.WAITING)
    command = models.OneToOneField(Command, null=True, on_delete=models.PROTECT, related_name="target")
    reason = models.CharField(max_length=300, blank=True, help_text="Why it ended as it did.")
    ended_at = models.DateTimeField(null=True)

    objects = ScopedQuerySet["Target"].as_manager()

    class Meta:
        ordering = ["campaign", "wave", "place"]
        constraints = [
            status_constraint(TargetStatus, "target_status_declared"),
            models.UniqueConstraint(fields=["campaign", "client"], name="target_once_in_campaign"),
            models.CheckConstraint(
                condition=models.Q(command__isnull=False)
                | models.Q(status__in=["waiting", "failed", "expired", "cancelled", "skipped"]),
                name="target_ordered_means_command",
            ),
        ]
        indexes = [models.Index(fields=["campaign", "status"], name="target_by_status")]

    def __str__(self) -> str:
        return f"{self.client} in the {self.campaign}"
