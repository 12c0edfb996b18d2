"""Clients: named, seated, admitted. What they report is read only."""

from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.db import models
from django.db.models import QuerySet
from django.forms import ModelChoiceField
from django.http import HttpRequest

from fleet import services
from fleet.admin.guarded import actor
from fleet.admin.scoped import ScopedAdmin, edited
from fleet.exceptions import OperatorError
from fleet.hardware import adapter_name
from fleet.models import Admission, Client, ClientClass
from fleet.roles import Right


@admin.register(Client)
class ClientAdmin(ScopedAdmin[Client]):
    change_right = Right.ENROL
    actions = ["admit", "maintain", "retire"]
    list_display = ["seat", "name", "client_class", "state", "since", "admission", "adapters_named", "site"]
    list_display_links = ["seat", "name"]
    list_filter = ["site", "client_class", "state", "admission"]
    list_select_related = ["client_class", "site"]
    search_fields = ["seat", "name", "mac", "serial"]
    readonly_fields = ["state", "since", "last_seen", "trouble", "adapters_named", "memory", "product", "serial"]
    fieldsets = [
        (None, {"fields": ["site", ("seat", "name"), "mac", "admission"]}),
        ("Class", {"fields": ["client_class", "class_pinned", "adapters_named"]}),
        ("Power on", {"fields": ["secure_on"]}),
        ("As last seen", {"fields": [("state", "since"), "last_seen", "trouble", "memory", ("product", "serial")]}),
    ]

    def get_readonly_fields(self, request: HttpRequest, obj: Client | None = None) -> list[str]:
        """A client's MAC address is its name on the wire: another one is another client."""
        return [*super().get_readonly_fields(request, obj), *(["mac"] if obj else [])]

    def get_fieldsets(self, request: HttpRequest, obj: Client | None = None) -> Any:
        """The password that wakes it is for those who may change it: to others it would be shown as plain text."""
        shown = super().get_fieldsets(request, obj)
        if self.has_change_permission(request, obj):
            return shown
        return [(name, options) for name, options in shown if "secure_on" not in options["fields"]]

    def formfield_for_foreignkey(
        self, db_field: models.ForeignKey[Any, Any], request: HttpRequest, **kwargs: Any
    ) -> "ModelChoiceField[Any] | None":
        if db_field.name == "client_class" and (key := edited(request)):
            kwargs["queryset"] = ClientClass.objects.filter(site__clients=UUID(key))
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    @admin.display(description="graphics adapters")
    def adapters_named(self, client: Client) -> str:
        named = (
            f"{adapter_name(adapter['vendor'], adapter['device'])} ({adapter['vendor']}:{adapter['device']})"
            for adapter in client.adapters
        )
        return ", ".join(named) or "not seen yet"

    @admin.display(description="memory")
    def memory(self, client: Client) -> str:
        return f"{client.memory_kib // 1024} MiB" if client.memory_kib else "not seen yet"

    @admin.action(description="Take into service", permissions=["change"])
    def admit(self, request: HttpRequest, clients: QuerySet[Client]) -> None:
        self._admit(request, clients, Admission.IN_SERVICE)

    @admin.action(description="Take into maintenance: they boot no more", permissions=["change"])
    def maintain(self, request: HttpRequest, clients: QuerySet[Client]) -> None:
        self._admit(request, clients, Admission.MAINTENANCE)

    @admin.action(description="Retire: they boot no more and leave the board", permissions=["change"])
    def retire(self, request: HttpRequest, clients: QuerySet[Client]) -> None:
        self._admit(request, clients, Admission.RETIRED)

    def _admit(self, request: HttpRequest, clients: QuerySet[Client], admission: Admission) -> None:
        done = []
        for client in clients:
            try:
                services.admit(client, actor(request), admission)
            except OperatorError as error:
                self.message_user(request, str(error), messages.ERROR)
            else:
                done.append(str(client))
        if done:
            self.message_user(request, f"{admission.label}: {', '.join(done)}.", messages.SUCCESS)
