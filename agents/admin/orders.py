"""Orders and their commands: read, and taken back while they wait."""

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.db.models import Count, F, Q, QuerySet
from django.http import HttpRequest
from django.template.defaultfilters import pluralize
from django.utils.safestring import SafeString

from agents import services
from agents.models import Command, CommandStatus, Envelope, Order
from fleet.admin.guarded import actor
from fleet.admin.logs import pretty
from fleet.admin.scoped import M, ScopedAdmin, holds
from fleet.exceptions import OperatorError
from fleet.roles import Right

if TYPE_CHECKING:
    _StackedInline = admin.StackedInline[Envelope, Command]
else:
    _StackedInline = admin.StackedInline  # it knows no type parameters while it runs


class OperatedAdmin(ScopedAdmin[M]):
    """A read-only page with actions for those who may order."""

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return holds(request.user, Right.OPERATE)


@admin.register(Order)
class OrderAdmin(OperatedAdmin[Order]):
    list_display = ["ordered_at", "verb", "reason", "ordered_by", "site", "clients", "became"]
    list_filter = ["site", "verb"]
    list_select_related = ["site", "ordered_by"]
    search_fields = ["reason", "ordered_by__username"]
    date_hierarchy = "ordered_at"
    actions = ["cancel"]
    fields = ["verb", "reason", "ordered_by", "ordered_at", "site", "became"]
    readonly_fields = ["became"]
    change_form_template = "admin/agents/order.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Order]:
        asked = Q(commands__verb=F("verb"))  # not those of relays that carry it out
        counts = {
            status.value: Count("commands", filter=asked & Q(commands__status=status)) for status in CommandStatus
        }
        return super().get_queryset(request).annotate(number=Count("commands", filter=asked), **counts)

    @admin.display(description="clients", ordering="number")
    def clients(self, order: Order) -> int:
        return int(getattr(order, "number", 0))

    @admin.display(description="what became of it")
    def became(self, order: Order) -> str:
        counts = ((status, getattr(order, status.value, 0)) for status in CommandStatus)
        return ", ".join(f"{count} {status.label.lower()}" for status, count in counts if count)

    @admin.action(description="Take back what was not sent yet", permissions=["operate"])
    def cancel(self, request: HttpRequest, orders: QuerySet[Order]) -> None:
        for order in orders:
            try:
                count = services.cancel_order(order, actor(request))
            except OperatorError as error:
                self.message_user(request, f"{order}: {error}", messages.ERROR)
            else:
                said = f"{order}: {count} command{pluralize(count)} taken back."
                self.message_user(request, said, messages.SUCCESS)

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        context["commands"] = Command.objects.filter(order=context["original"]).select_related("client")
        return super().render_change_form(request, context, *args, **kwargs)


class EnvelopeInline(_StackedInline):
    """What was signed, beside its command."""

    model = Envelope
    verbose_name_plural = "envelope"  # there is one
    fields = readonly_fields = ("signed_at", "session", "sequence", "key_id", "arguments")
    can_delete = False

    @admin.display(description="arguments")
    def arguments(self, envelope: Envelope) -> SafeString:
        # A relay's own stand without passwords, which are nobody's to read here.
        return pretty(envelope.command.args or envelope.args)

    def has_view_permission(self, request: HttpRequest, obj: Command | None = None) -> bool:
        return True  # to whom its command is shown

    def has_add_permission(self, request: HttpRequest, obj: Command | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Command | None = None) -> bool:
        return False


@admin.register(Command)
class CommandAdmin(OperatedAdmin[Command]):
    list_display = ["queued_at", "verb", "client", "status", "reason", "finished_at"]
    list_filter = ["client__site", "verb", "status"]
    list_select_related = ["client"]
    search_fields = ["client__name", "client__seat", "reason"]
    date_hierarchy = "queued_at"
    actions = ["cancel"]
    readonly_fields = ["outcome"]
    fieldsets = [
        (None, {"fields": ["order", "client", "verb", "status", "reason"]}),
        ("Times", {"fields": ["queued_at", "sent_at", "accepted_at", "finished_at", "expires_at"]}),
        ("Reported", {"fields": ["outcome"]}),
    ]

    def get_inlines(self, request: HttpRequest, obj: Command | None) -> list[Any]:
        return [EnvelopeInline] if hasattr(obj, "envelope") else []

    @admin.display(description="result")
    def outcome(self, command: Command) -> SafeString:
        return pretty(command.result)

    @admin.action(description="Take back what was not sent yet", permissions=["operate"])
    def cancel(self, request: HttpRequest, commands: QuerySet[Command]) -> None:
        for command in commands:
            try:
                services.cancel(command, actor(request))
            except OperatorError as error:
                self.message_user(request, str(error), messages.ERROR)
            else:
                self.message_user(request, f"The {command} is taken back.", messages.SUCCESS)
