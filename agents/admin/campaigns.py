"""Campaigns and what became of each of their clients: read, approved, paused and stopped."""

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db.models import Case, QuerySet, Value, When
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from agents import campaigns, targets
from agents.admin.orders import OperatedAdmin
from agents.models import Campaign, CampaignStatus, Target, TargetStatus
from agents.selecting import Selection
from fleet.admin.guarded import actor, page_of
from fleet.admin.scoped import holds
from fleet.exceptions import OperatorError
from fleet.roles import Right

SHOWN = 200  # targets on a campaign's page; all of them are a list of their own
_TROUBLE_FIRST = Case(
    When(
        status__in=(TargetStatus.FAILED, TargetStatus.LOST, TargetStatus.REFUSED, TargetStatus.EXPIRED), then=Value(0)
    ),
    When(status__in=Target.OPEN, then=Value(1)),
    When(status__in=(TargetStatus.SKIPPED, TargetStatus.CANCELLED), then=Value(2)),
    default=Value(3),
)
BUTTONS = {
    CampaignStatus.AWAITING: ("approve", "stop"),
    CampaignStatus.SCHEDULED: ("stop",),
    CampaignStatus.RUNNING: ("pause", "stop"),
    CampaignStatus.PAUSED: ("resume", "stop"),
}
WORDS = {"approve": "Approve", "pause": "Pause", "resume": "Go on", "stop": "Stop now"}


@admin.register(Campaign)
class CampaignAdmin(OperatedAdmin[Campaign]):
    list_display = ["ordered_at", "verb", "whom", "status", "became", "reason", "ordered_by", "site"]
    list_filter = ["order__site", "order__verb", "status"]
    list_select_related = ["order__site", "order__ordered_by"]
    search_fields = ["order__reason", "order__ordered_by__username"]
    date_hierarchy = "order__ordered_at"
    actions = ["stop", "pause", "resume", "approve"]
    change_form_template = "admin/agents/campaign.html"
    readonly_fields = ["verb", "whom", "reason", "ordered_by", "ordered_at", "site", "became", "wave", "outcome"]
    fieldsets = [
        (None, {"fields": ["verb", "whom", "reason", ("ordered_by", "ordered_at"), "status", "outcome", "became"]}),
        ("Times", {"fields": ["starts_at", "expires_at", ("started_at", "ended_at")]}),
        ("Waves", {"fields": [("wave", "wave_at"), "canary", ("wave_by", "share"), "spread_s"]}),
        ("Who is offline", {"fields": [("offline", "wait_until")]}),
        ("Thresholds", {"fields": [("success_percent", "failed_percent"), ("judged_after", "on_failure")]}),
    ]

    def has_release_permission(self, request: HttpRequest) -> bool:
        return holds(request.user, Right.RELEASE)

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """The counts of all campaigns of the page by one query."""
        found: Any = super().get_changelist_instance(request)
        counts = targets.tallies(found.result_list)
        for campaign in found.result_list:
            campaign.counts = counts.get(campaign.pk, {})
        return found

    @admin.display(description="ordered at", ordering="order__ordered_at")
    def ordered_at(self, campaign: Campaign) -> str:
        return f"{campaign.order.ordered_at:%Y-%m-%d %H:%M:%S}"

    @admin.display(description="order", ordering="order__verb")
    def verb(self, campaign: Campaign) -> SafeString:
        return format_html('<a href="{}">{}</a>', page_of(campaign.order), campaign.order.get_verb_display())

    @admin.display(description="whom")
    def whom(self, campaign: Campaign) -> str:
        return str(Selection.from_json(campaign.selection))

    @admin.display(description="reason")
    def reason(self, campaign: Campaign) -> str:
        return campaign.order.reason

    @admin.display(description="ordered by", ordering="order__ordered_by")
    def ordered_by(self, campaign: Campaign) -> str:
        return str(campaign.order.ordered_by or "nobody")

    @admin.display(description="site", ordering="order__site")
    def site(self, campaign: Campaign) -> str:
        return str(campaign.order.site)

    @admin.display(description="what became of it")
    def became(self, campaign: Campaign) -> str:
        return targets.told(getattr(campaign, "counts", None) or targets.tally(campaign)) or "—"

    @admin.action(description="Stop now: whoever has not accepted does nothing", permissions=["operate"])
    def stop(self, request: HttpRequest, rows: QuerySet[Campaign]) -> None:
        self._each(request, rows, campaigns.stop, "is stopped")

    @admin.action(description="Pause: order nothing more for now", permissions=["operate"])
    def pause(self, request: HttpRequest, rows: QuerySet[Campaign]) -> None:
        self._each(request, rows, campaigns.pause, "is paused")

    @admin.action(description="Go on", permissions=["operate"])
    def resume(self, request: HttpRequest, rows: QuerySet[Campaign]) -> None:
        self._each(request, rows, campaigns.resume, "goes on")

    @admin.action(description="Approve: let it go beyond the site's caps", permissions=["release"])
    def approve(self, request: HttpRequest, rows: QuerySet[Campaign]) -> None:
        self._each(request, rows, campaigns.approve, "is approved")

    def _each(
        self, request: HttpRequest, rows: QuerySet[Campaign], act: Callable[[Campaign, Any], object], done: str
    ) -> None:
        for campaign in rows.select_related("order__site"):
            try:
                act(campaign, actor(request))
            except OperatorError as error:
                self.message_user(request, str(error), messages.ERROR)
            else:
                said = format_html('The <a href="{}">{}</a> {}.', page_of(campaign), campaign, done)
                self.message_user(request, said, messages.SUCCESS)

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        campaign: Campaign = context["original"]
        rows = Target.objects.filter(campaign=campaign).select_related("client").order_by(_TROUBLE_FIRST, "pk")
        buttons = BUTTONS.get(CampaignStatus(campaign.status), ()) if self.has_operate_permission(request) else ()
        context |= {
            "targets": rows[:SHOWN],
            "number": rows.count(),
            "all_targets": f"{reverse('admin:agents_target_changelist')}?campaign__exact={campaign.pk}",
            "buttons": [(action, WORDS[action]) for action in buttons],
            "checkbox": ACTION_CHECKBOX_NAME,
        }
        return super().render_change_form(request, context, *args, **kwargs)


@admin.register(Target)
class TargetAdmin(OperatedAdmin[Target]):
    list_display = ["client", "status", "reason", "wave", "place", "ended_at", "campaign"]
    list_filter = ["campaign__order__site", "status", "wave"]
    list_select_related = ["client", "campaign__order"]
    search_fields = ["client__name", "client__seat", "reason"]
    fields = ["campaign", "client", ("wave", "place"), "status", "reason", "command", "ended_at"]
