"""Power on in the admin: the power ports of clients, and which models wake and which do not."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from agents.models import PowerPort, Wake
from agents.power import report
from fleet.admin.scoped import ScopedAdmin
from fleet.hardware import adapter_name
from fleet.roles import Right


@admin.register(PowerPort)
class PowerPortAdmin(ScopedAdmin[PowerPort]):
    """For site admins: it says where the server connects to, and whom it tells a password."""

    change_right = Right.MANAGE
    list_display = ["client", "kind", "address", "outlet", "credential"]
    list_filter = ["client__site", "kind"]
    list_select_related = ["client"]
    search_fields = ["client__name", "client__seat", "address"]
    fields = ["client", "kind", "address", "outlet", "credential"]


@admin.register(Wake)
class WakeAdmin(ScopedAdmin[Wake]):
    list_display = ["ordered_at", "client", "became", "explanation", "way", "rounds", "product_named"]
    list_filter = ["command__client__site", "command__status", "asleep", "way", "product"]
    list_select_related = ["command__client"]
    search_fields = ["command__client__name", "command__client__seat", "product"]
    date_hierarchy = "command__queued_at"
    fields = [
        *("command", "became", "explanation", "way", "rounds", "next_at", "dealt", "sent_at", "relays", "trouble"),
        *("asleep", "product_named"),
    ]
    readonly_fields = ["became", "explanation", "product_named"]
    change_list_template = "admin/agents/wakes.html"

    @admin.display(description="ordered", ordering="command__queued_at")
    def ordered_at(self, wake: Wake) -> Any:
        return wake.command.queued_at

    @admin.display(description="client", ordering="command__client__seat")
    def client(self, wake: Wake) -> str:
        return str(wake.command.client)

    @admin.display(description="what became of it", ordering="command__status")
    def became(self, wake: Wake) -> str:
        return wake.command.get_status_display()

    @admin.display(description="explanation")
    def explanation(self, wake: Wake) -> str:
        return wake.command.reason

    @admin.display(description="model", ordering="product")
    def product_named(self, wake: Wake) -> str:
        adapter = adapter_name(*wake.adapter.split(":")) if wake.adapter else ""
        return ", ".join(filter(None, [wake.product, adapter])) or "not seen yet"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Wake]:
        return super().get_queryset(request).prefetch_related("relays")

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The list, and above it what its filters leave, by model."""
        answer = super().changelist_view(request, extra_context)
        if isinstance(answer, TemplateResponse) and answer.context_data and "cl" in answer.context_data:
            answer.context_data["models"] = report.by_model(answer.context_data["cl"].queryset)
        return answer
