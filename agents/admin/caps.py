"""How much a site bears at once, and the switch that stops all signing."""

from typing import Any

from django.contrib import admin, messages
from django.contrib.auth.models import User
from django.db import models
from django.db.models import QuerySet
from django.forms import ModelChoiceField
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse

from agents import freezing
from agents.models import Cap, Freeze
from fleet.admin.guarded import actor
from fleet.admin.scoped import ScopedAdmin, holds
from fleet.exceptions import OperatorError
from fleet.roles import Right


@admin.register(Cap)
class CapAdmin(ScopedAdmin[Cap]):
    change_right = Right.MANAGE
    list_display = ["verb", "per_minute", "at_once", "site"]
    list_filter = ["site", "verb"]
    list_select_related = ["site"]
    fields = ["site", "verb", ("per_minute", "at_once")]


@admin.register(Freeze)
class FreezeAdmin(ScopedAdmin[Freeze]):
    """One is made by whoever may order, and lifted by whoever may release; none is ever changed or forgotten."""

    change_right = Right.OPERATE
    actions = ["lift"]
    list_display = ["frozen_at", "where", "reason", "frozen_by", "lifted_at", "lifted_by"]
    list_filter = ["site", ("lifted_at", admin.EmptyFieldListFilter)]
    list_select_related = ["site", "frozen_by", "lifted_by"]
    fields = ["site", "reason"]

    def has_change_permission(self, request: HttpRequest, obj: Freeze | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Freeze | None = None) -> bool:
        return False

    def has_release_permission(self, request: HttpRequest) -> bool:
        return holds(request.user, Right.RELEASE)

    def get_fields(self, request: HttpRequest, obj: Freeze | None = None) -> Any:
        more = ["frozen_by", "frozen_at", "lifted_by", "lifted_at"] if obj else []
        return [*super().get_fields(request, obj), *more]

    @admin.display(description="where", ordering="site")
    def where(self, freeze: Freeze) -> str:
        return str(freeze.site or "all sites")

    def formfield_for_foreignkey(
        self, db_field: models.ForeignKey[Any, Any], request: HttpRequest, **kwargs: Any
    ) -> "ModelChoiceField[Any] | None":
        field = super().formfield_for_foreignkey(db_field, request, **kwargs)
        if db_field.name == "site" and field is not None:
            everywhere = isinstance(request.user, User) and request.user.is_superuser
            field.required = not everywhere
            field.empty_label = "All sites" if everywhere else field.empty_label
        return field

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().changeform_view(request, *args, **kwargs)
        except OperatorError as error:
            self.message_user(request, str(error), messages.ERROR)
            return HttpResponseRedirect(reverse("admin:agents_freeze_changelist"))

    def save_model(self, request: HttpRequest, obj: Freeze, form: Any, change: bool) -> None:
        """By the service, which asks for the right and writes it down."""
        obj.pk = freezing.freeze(obj.site, obj.reason, actor(request)).pk

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """There is nothing of the kind, and nothing to be written down twice."""

    @admin.action(description="Lift: what waits is signed", permissions=["release"])
    def lift(self, request: HttpRequest, freezes: QuerySet[Freeze]) -> HttpResponse | None:
        for freeze in freezes:
            try:
                freezing.lift(freeze, actor(request))
            except OperatorError as error:
                self.message_user(request, str(error), messages.ERROR)
            else:
                self.message_user(request, f"{freeze.site or 'Everything'} is frozen no more.", messages.SUCCESS)
        return None
