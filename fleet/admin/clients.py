"""Clients: named, seated, admitted. What they report is read only."""

from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ActionForm
from django.db import models
from django.db.models import Count, QuerySet
from django.forms import ModelChoiceField, ModelMultipleChoiceField
from django.http import HttpRequest
from django.template.defaultfilters import pluralize

from fleet import services
from fleet.admin.guarded import actor
from fleet.admin.scoped import ScopedAdmin, edited
from fleet.exceptions import OperatorError
from fleet.hardware import adapter_name
from fleet.models import Admission, Client, ClientClass, Tag
from fleet.roles import Right


class TaggingForm(ActionForm):
    tag = forms.CharField(max_length=40, required=False, label="Tag:")


@admin.register(Client)
class ClientAdmin(ScopedAdmin[Client]):
    change_right = Right.ENROL
    actions = ["admit", "maintain", "retire", "take_back_twin", "tag", "untag"]
    action_form = TaggingForm
    list_display = ["seat", "name", "client_class", "state", "since", "admission", "adapters_named", "site"]
    list_display_links = ["seat", "name"]
    list_filter = ["site", "client_class", "state", "admission", "tags", ("twin_at", admin.EmptyFieldListFilter)]
    list_select_related = ["client_class", "site"]
    search_fields = ["seat", "name", "mac", "serial"]
    readonly_fields = [
        *("state", "since", "last_seen", "trouble", "twin_at", "adapters_named", "memory", "product", "serial"),
    ]
    fieldsets = [
        (None, {"fields": ["site", ("seat", "name"), "mac", "admission", "tags"]}),
        ("Class", {"fields": ["client_class", "class_pinned", "adapters_named"]}),
        ("Power on", {"fields": ["secure_on"]}),
        (
            "As last seen",
            {"fields": [("state", "since"), "last_seen", "trouble", "twin_at", "memory", ("product", "serial")]},
        ),
    ]

    def get_readonly_fields(self, request: HttpRequest, obj: Client | None = None) -> list[str]:
        """A client's MAC address is its name on the wire: another one is another client."""
        return [*super().get_readonly_fields(request, obj), *(["mac"] if obj else ["tags"])]

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

    def formfield_for_manytomany(
        self, db_field: "models.ManyToManyField[Any, Any]", request: HttpRequest, **kwargs: Any
    ) -> "ModelMultipleChoiceField[Any] | None":
        """Of the tags of its own site; a new client has a site first."""
        key = edited(request)
        kwargs["queryset"] = Tag.objects.filter(site__clients=UUID(key)) if key else Tag.objects.none()
        kwargs["widget"] = forms.CheckboxSelectMultiple
        return super().formfield_for_manytomany(db_field, request, **kwargs)

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

    @admin.action(description="Put the tag on them", permissions=["change"])
    def tag(self, request: HttpRequest, clients: QuerySet[Client]) -> None:
        self._tag(request, clients, off=False)

    @admin.action(description="Take the tag away from them", permissions=["change"])
    def untag(self, request: HttpRequest, clients: QuerySet[Client]) -> None:
        self._tag(request, clients, off=True)

    def _tag(self, request: HttpRequest, clients: QuerySet[Client], *, off: bool) -> None:
        name = request.POST.get("tag", "").strip()
        try:
            number = services.tag(clients, name, actor(request), off=off)
        except OperatorError as error:
            self.message_user(request, str(error), messages.ERROR)
        else:
            said = f"The tag {name} is {'taken from' if off else 'put on'} {number} client{pluralize(number)}."
            self.message_user(request, said, messages.SUCCESS)

    @admin.action(description="Take back the alarm that two have this MAC address", permissions=["change"])
    def take_back_twin(self, request: HttpRequest, clients: QuerySet[Client]) -> None:
        for client in clients:
            try:
                services.take_back_twin(client, actor(request))
            except OperatorError as error:
                self.message_user(request, str(error), messages.ERROR)
            else:
                self.message_user(request, f"{client}: the alarm is taken back.", messages.SUCCESS)

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


@admin.register(Tag)
class TagAdmin(ScopedAdmin[Tag]):
    change_right = Right.ENROL
    list_display = ["name", "clients", "site"]
    list_filter = ["site"]
    list_select_related = ["site"]
    search_fields = ["name"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Tag]:
        return super().get_queryset(request).annotate(number=Count("clients"))

    @admin.display(description="clients", ordering="number")
    def clients(self, tag: Tag) -> int:
        return int(getattr(tag, "number", 0))
