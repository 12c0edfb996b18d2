"""The page of clients, which offers orders and tells what became of earlier ones."""

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html

from agents import services
from agents.admin.sessions import revoke_each
from agents.models import BootSession, Command, HomeRestore, SessionStatus, Verb
from agents.services import RIGHTS
from fleet.admin.clients import ClientAdmin
from fleet.admin.guarded import actor, page_of
from fleet.admin.scoped import holds
from fleet.exceptions import OperatorError
from fleet.models import Client
from fleet.roles import Right
from images.services import may

LATEST = 8
EFFECTS = {
    Verb.CYCLE: "All processes of the user are killed, the home is restored from its template, the user is logged in again.",
    Verb.RESTART: "They restart and boot what is released to their class now.",
    Verb.POWEROFF: "They go down and stay off until somebody switches them on.",
    Verb.WAKE: "Those that are off are switched on, and boot what is released to their class now. Those that are on fail, and stay on.",
    Verb.CAPTURE: "What is in the user's home now is sent to the server while the user goes on. You see how it differs, and what may be "
    "secrets in it, before it is accepted as a template.",
}

# fleet knows nothing of orders, so its page of clients is replaced by one that does. A subclass, because everything else
# of the page stays fleet's, and because a registry of actions in fleet would be there for this one guest.
admin.site.unregister(Client)


@admin.register(Client)
class OrderedClientAdmin(ClientAdmin):
    actions = ["cycle", "restart", "poweroff", "wake", "capture", *ClientAdmin.actions, "revoke"]
    change_form_template = "admin/agents/client.html"

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Offers the orders to whoever may give them somewhere; the service decides of each client."""
        return holds(request.user, Right.OPERATE)

    def has_release_permission(self, request: HttpRequest) -> bool:
        return holds(request.user, Right.RELEASE)

    @admin.action(description="Cycle: restore the home, log in again", permissions=["operate"])
    def cycle(self, request: HttpRequest, clients: QuerySet[Client]) -> HttpResponse:
        return self._order(request, clients, Verb.CYCLE)

    @admin.action(description="Restart", permissions=["operate"])
    def restart(self, request: HttpRequest, clients: QuerySet[Client]) -> HttpResponse:
        return self._order(request, clients, Verb.RESTART)

    @admin.action(description="Power down", permissions=["operate"])
    def poweroff(self, request: HttpRequest, clients: QuerySet[Client]) -> HttpResponse:
        return self._order(request, clients, Verb.POWEROFF)

    @admin.action(description="Power on", permissions=["operate"])
    def wake(self, request: HttpRequest, clients: QuerySet[Client]) -> HttpResponse:
        return self._order(request, clients, Verb.WAKE)

    @admin.action(description="Capture the home as a new template (one client)", permissions=["release"])
    def capture(self, request: HttpRequest, clients: QuerySet[Client]) -> HttpResponse:
        return self._order(request, clients, Verb.CAPTURE)

    @admin.action(
        description="Revoke their sessions: hear no more of them until they boot anew", permissions=["change"]
    )
    def revoke(self, request: HttpRequest, clients: QuerySet[Client]) -> None:
        alive = (*BootSession.LIVE, SessionStatus.LOST)
        revoke_each(self, request, BootSession.objects.filter(client__in=clients, status__in=alive))

    def _order(self, request: HttpRequest, chosen: QuerySet[Client], verb: Verb) -> HttpResponse:
        """Ask for the reason first, as the admin does before it deletes; then order, and go back to where it was asked."""
        clients = list(chosen)
        problem, reason = "", request.POST.get("reason", "")
        # The page posts to the bare list: a client that left the filtered one meanwhile is still among the chosen.
        filters = request.POST.get("_changelist_filters", request.GET.urlencode())
        alone = len(clients) == 1 and "alone" in request.POST
        back = page_of(clients[0]) if alone else f"{reverse('admin:fleet_client_changelist')}?{filters}"
        if "confirmed" in request.POST:
            try:
                order = services.order(verb, clients, reason, actor(request))
            except OperatorError as error:
                problem = str(error)
            else:
                whom = str(clients[0]) if len(clients) == 1 else f"{len(clients)} clients"
                said = format_html('<a href="{}">{} of {}</a> is ordered.', page_of(order), verb.label, whom)
                self.message_user(request, said, messages.SUCCESS)
                return HttpResponseRedirect(back)
        context = {
            **self.admin_site.each_context(request),
            "title": f"{verb.label}?",
            "opts": self.opts,
            "verb": verb,
            "effect": EFFECTS[verb],
            "clients": clients,
            "alone": alone,
            "filters": filters,
            "back": back,
            "problem": problem,
            "reason": reason,
            "checkbox": ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "admin/agents/ask.html", context)

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        client: Client | None = context.get("original")
        if client is not None:
            verbs = [verb for verb in EFFECTS if may(actor(request), RIGHTS.get(verb, Right.OPERATE), client)]
            sessions = BootSession.objects.filter(client=client).select_related("release__version__image")
            context |= {
                "verbs": verbs,
                "checkbox": ACTION_CHECKBOX_NAME,
                "commands": Command.objects.filter(client=client).select_related("order__ordered_by")[:LATEST],
                "restores": HomeRestore.objects.filter(client=client)[:LATEST],
                "sessions": sessions[:LATEST],
            }
        return super().render_change_form(request, context, *args, **kwargs)
