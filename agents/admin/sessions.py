"""Boots: of which client, into what, how long they took."""

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from agents import revoking
from agents.models import BootSession
from fleet.admin.guarded import GuardedAdmin, actor
from fleet.admin.logs import pretty
from fleet.admin.scoped import ScopedAdmin, holds
from fleet.exceptions import OperatorError
from fleet.roles import Right


def revoke_each(page: GuardedAdmin[Any], request: HttpRequest, sessions: QuerySet[BootSession]) -> None:
    """Revoke them, and say of each what came of it."""
    for session in sessions.select_related("client__site"):
        try:
            revoking.revoke(session, actor(request))
        except OperatorError as error:
            page.message_user(request, str(error), messages.ERROR)
        else:
            said = f"The {session} is revoked; {session.client.name} is served again when it boots anew."
            page.message_user(request, said, messages.SUCCESS)


@admin.register(BootSession)
class BootSessionAdmin(ScopedAdmin[BootSession]):
    list_display = ["planned_at", "client", "status", "client_class", "release", "boot_seconds", "last_seen"]
    actions = ["revoke"]
    list_filter = ["client__site", "status", "client_class"]
    list_select_related = ["client", "client_class", "release__version__image", "release__client_class"]
    search_fields = ["client__name", "client__seat"]
    date_hierarchy = "planned_at"
    readonly_fields = ["boot_times", "reported"]
    fieldsets = [
        (None, {"fields": ["client", "status", "client_class", "release", "boot_id", "protocol"]}),
        ("Times", {"fields": ["planned_at", "opened_at", "last_seen", "ended_at", "boot_times"]}),
        ("Reported", {"fields": ["reported"]}),
    ]

    def has_enrol_permission(self, request: HttpRequest) -> bool:
        return holds(request.user, Right.ENROL)

    @admin.action(description="Revoke: hear no more of these boots", permissions=["enrol"])
    def revoke(self, request: HttpRequest, sessions: QuerySet[BootSession]) -> None:
        revoke_each(self, request, sessions)

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Not even the hash of a client's key is searched for."""
        return not lookup.startswith("bearer_digest") and super().lookup_allowed(lookup, value, request)

    @admin.display(description="boot, s")
    def boot_seconds(self, session: BootSession) -> str:
        ms = session.facts.get("boot_ms", {}).get("daemon")
        return f"{ms / 1000:.1f}" if ms else "—"

    @admin.display(description="since the kernel started")
    def boot_times(self, session: BootSession) -> str:
        times = sorted(session.facts.get("boot_ms", {}).items(), key=lambda stage: stage[1])
        return ", ".join(f"{stage} {ms / 1000:.1f} s" for stage, ms in times) or "not reported yet"

    @admin.display(description="facts")
    def reported(self, session: BootSession) -> SafeString:
        return pretty(session.facts)
