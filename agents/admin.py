"""Orders, and what became of them, in the admin; the orders that a list of clients offers."""

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.auth.models import User
from django.db import models
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from agents import services
from agents.models import BootSession, Command, CommandStatus, HomeRestore, Order, Verb
from fleet.admin.clients import ClientAdmin
from fleet.admin.logs import LogAdmin
from fleet.admin.scoped import ScopedAdmin, holds
from fleet.exceptions import OperatorError
from fleet.models import Client
from fleet.roles import Right

LATEST = 8
EFFECTS = {
    Verb.CYCLE: "All processes of the user are killed, the home is restored from its template, the user is logged in again.",
    Verb.RESTART: "They restart and boot what is released to their class now.",
    Verb.POWEROFF: "They go down and stay off until somebody switches them on.",
}


def _actor(request: HttpRequest) -> User:
    assert isinstance(request.user, User)  # the admin lets nobody else in
    return request.user


def _page(row: models.Model) -> str:
    return reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk])


# fleet knows nothing of orders, so its page of clients is replaced by one that does; everything else of it stays.
admin.site.unregister(Client)


@admin.register(Client)
class OrderedClientAdmin(ClientAdmin):
    actions = ["cycle", "restart", "poweroff", *ClientAdmin.actions]
    change_form_template = "admin/agents/client.html"

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return holds(request.user, Right.OPERATE)

    @admin.action(description="Cycle: restore the home, log in again", permissions=["operate"])
    def cycle(self, request: HttpRequest, clients: QuerySet[Client]) -> HttpResponse | None:
        return self._order(request, clients, Verb.CYCLE)

    @admin.action(description="Restart", permissions=["operate"])
    def restart(self, request: HttpRequest, clients: QuerySet[Client]) -> HttpResponse | None:
        return self._order(request, clients, Verb.RESTART)

    @admin.action(description="Power down", permissions=["operate"])
    def poweroff(self, request: HttpRequest, clients: QuerySet[Client]) -> HttpResponse | None:
        return self._order(request, clients, Verb.POWEROFF)

    def _order(self, request: HttpRequest, clients: QuerySet[Client], verb: Verb) -> HttpResponse | None:
        """Ask for the reason first, as the admin does before it deletes; then order, and show the order."""
        problem, reason = "", request.POST.get("reason", "")
        if "confirmed" in request.POST:
            try:
                order = services.order(verb, clients, reason, _actor(request))
            except OperatorError as error:
                problem = str(error)
            else:
                self.message_user(request, f"{verb.label} is ordered of {len(clients)} clients.", messages.SUCCESS)
                return HttpResponseRedirect(_page(order))
        context = {
            **self.admin_site.each_context(request),
            "title": f"{verb.label}?",
            "opts": self.opts,
            "verb": verb,
            "effect": EFFECTS[verb],
            "clients": clients,
            "problem": problem,
            "reason": reason,
            "checkbox": ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "admin/agents/ask.html", context, status=400 if problem else 200)

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        client: Client | None = context.get("original")
        if client is not None:
            allowed = Client.objects.visible_to(_actor(request), Right.OPERATE).filter(pk=client.pk)
            context |= {
                "verbs": Verb if allowed.exists() else [],
                "checkbox": ACTION_CHECKBOX_NAME,
                "commands": Command.objects.filter(client=client).select_related("order__ordered_by")[:LATEST],
                "restores": HomeRestore.objects.filter(client=client)[:LATEST],
                "sessions": BootSession.objects.filter(client=client).select_related("release__version__image")[
                    :LATEST
                ],
            }
        return super().render_change_form(request, context, *args, **kwargs)


@admin.register(Order)
class OrderAdmin(ScopedAdmin[Order]):
    list_display = ["ordered_at", "verb", "reason", "ordered_by", "site", "clients", "became"]
    list_filter = ["site", "verb"]
    list_select_related = ["site", "ordered_by"]
    search_fields = ["reason", "ordered_by__username"]
    date_hierarchy = "ordered_at"
    actions = ["cancel"]
    change_form_template = "admin/agents/order.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Order]:
        counts = {status.value: Count("commands", filter=Q(commands__status=status)) for status in CommandStatus}
        return super().get_queryset(request).annotate(number=Count("commands"), **counts)

    @admin.display(description="clients", ordering="number")
    def clients(self, order: Order) -> int:
        return int(getattr(order, "number", 0))

    @admin.display(description="what became of it")
    def became(self, order: Order) -> str:
        counts = ((status, getattr(order, status.value, 0)) for status in CommandStatus)
        return ", ".join(f"{count} {status.label.lower()}" for status, count in counts if count)

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return holds(request.user, Right.OPERATE)

    @admin.action(description="Take back what was not sent yet", permissions=["operate"])
    def cancel(self, request: HttpRequest, orders: QuerySet[Order]) -> None:
        for order in orders:
            try:
                taken_back = services.cancel_queued(order, _actor(request))
            except OperatorError as error:
                self.message_user(request, f"{order}: {error}", messages.ERROR)
            else:
                self.message_user(request, f"{order}: {taken_back} commands taken back.", messages.SUCCESS)

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        context["commands"] = Command.objects.filter(order=context["original"]).select_related("client")
        return super().render_change_form(request, context, *args, **kwargs)


@admin.register(Command)
class CommandAdmin(ScopedAdmin[Command]):
    list_display = ["queued_at", "verb", "client", "status", "reason", "finished_at"]
    list_filter = ["client__site", "verb", "status"]
    list_select_related = ["client"]
    search_fields = ["client__name", "client__seat", "reason"]
    date_hierarchy = "queued_at"
    fields = (
        *("order", "client", "verb", "status", "reason", "sequence", "key_id", "args", "result"),
        ("queued_at", "sent_at", "accepted_at", "finished_at", "expires_at"),
    )


@admin.register(HomeRestore)
class HomeRestoreAdmin(LogAdmin[HomeRestore]):
    list_display = ["at", "client_name", "class_name", "result", "asked_by", "reason", "files", "size", "took"]
    list_filter = ["site", "result", "class_name"]
    search_fields = ["client_name", "asked_by", "reason"]
    readonly_fields = ["size", "phases"]
    export_fields = (
        *("id", "site", "client", "command", "at", "client_name", "class_name", "asked_by", "reason", "result"),
        *("explanation", "template", "expected", "before", "after", "files", "bytes", "killed", "phases_ms"),
    )
    fieldsets = [
        (
            None,
            {"fields": ["at", "client_name", "class_name", "asked_by", "reason", "result", "explanation", "command"]},
        ),
        ("Thrown away", {"fields": [("files", "size", "killed"), "before"]}),
        ("Restored", {"fields": ["template", "expected", "after", "phases"]}),
    ]

    @admin.display(description="bytes thrown away", ordering="bytes")
    def size(self, restore: HomeRestore) -> str:
        return f"{restore.bytes:,}".replace(",", " ") if restore.bytes is not None else "—"

    @admin.display(description="ms")
    def took(self, restore: HomeRestore) -> str:
        return str(restore.phases_ms.get("total", "—"))

    @admin.display(description="phases")
    def phases(self, restore: HomeRestore) -> SafeString:
        return phases_bar(restore.phases_ms)


def phases_bar(phases: dict[str, int]) -> SafeString:
    """The phases of a cycle as one bar, each as wide as it took, and their names with milliseconds below."""
    parts = [(name, ms) for name, ms in phases.items() if name != "total" and ms > 0]
    whole, done = sum(ms for _, ms in parts), 0
    if not whole:
        return format_html("{}", "—")
    bars, names = SafeString(""), SafeString("")
    for number, (name, ms) in enumerate(parts):
        bars += format_html(
            '<rect class="p{}" x="{}" width="{}" height="10"><title>{} {} ms</title></rect>',
            number % 5,
            round(1000 * done / whole),
            max(1, round(1000 * ms / whole)),
            name,
            ms,
        )
        names += format_html("<li>{} {} ms</li>", name, ms)
        done += ms
    return format_html(
        '<svg class="phases" viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" aria-label="{} ms in all">{}</svg>'
        '<ul class="phase-names">{}<li><b>total {} ms</b></li></ul>',
        phases.get("total", whole),
        bars,
        names,
        phases.get("total", whole),
    )


@admin.register(BootSession)
class BootSessionAdmin(ScopedAdmin[BootSession]):
    list_display = ["planned_at", "client", "status", "client_class", "release", "boot_seconds", "last_seen"]
    list_filter = ["client__site", "status", "client_class"]
    list_select_related = ["client", "client_class", "release__version__image", "release__client_class"]
    search_fields = ["client__name", "client__seat"]
    date_hierarchy = "planned_at"
    exclude = ["bearer_digest"]

    @admin.display(description="boot, s")
    def boot_seconds(self, session: BootSession) -> str:
        ms = session.facts.get("boot_ms", {}).get("daemon")
        return f"{ms / 1000:.1f}" if ms else "—"
