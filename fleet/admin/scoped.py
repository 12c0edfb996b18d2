"""The one base of all admin pages: it scopes rows to the person's sites and rights to their roles."""

from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from django import forms
from django.contrib import admin
from django.contrib.admin.utils import get_fields_from_path
from django.contrib.auth.models import AnonymousUser, User
from django.db import models
from django.http import HttpRequest

from fleet.admin.audited import AuditedAdmin
from fleet.models import Membership, Site
from fleet.querysets import ScopedQuerySet
from fleet.roles import Right, roles_with

if TYPE_CHECKING:
    ModelChoiceField = forms.ModelChoiceField
else:

    class ModelChoiceField(forms.ModelChoiceField):
        """Django's, which knows no type parameters while it runs."""

        def __class_getitem__(cls, _: object) -> type:
            return cls


M = TypeVar("M", bound=models.Model)


def holds(person: User | AnonymousUser, right: Right) -> bool:
    """True if ``person`` holds ``right`` at any site."""
    if not isinstance(person, User) or not person.is_active:
        return False
    return person.is_superuser or not _roles(person).isdisjoint(roles_with(right))


def _roles(person: User) -> frozenset[str]:
    """Those of all their memberships: asked once for a request, as Django does with its own permissions. A page asks forty times."""
    roles: frozenset[str] | None = getattr(person, "_roles", None)
    if roles is None:
        roles = frozenset(Membership.objects.filter(user=person).values_list("role", flat=True))
        person._roles = roles  # type: ignore[attr-defined]
    return roles


def several_sites(request: HttpRequest) -> bool:
    """True where a name alone does not tell whose it is."""
    return Site.objects.visible_to(request.user).count() > 1


def edited(request: HttpRequest) -> str:
    """The key of the row whose page was asked for; empty for a new one."""
    match = request.resolver_match
    return str(match.kwargs.get("object_id", "")) if match else ""


class PlacedChoice(ModelChoiceField[Any]):
    """Rows of several sites, each named with its site."""

    def label_from_instance(self, row: Any) -> str:
        return f"{row.site}: {row}"


class ScopedFilter(admin.RelatedFieldListFilter):
    """A filter by another row, of those the person may see."""

    def field_choices(self, field: Any, request: HttpRequest, model_admin: "admin.ModelAdmin[Any]") -> list[Any]:
        rows: Any = field.remote_field.model._default_manager.all()
        if isinstance(rows, ScopedQuerySet):
            rows = rows.visible_to(request.user)
        if getattr(rows.model, "SITE", "") == "site" and several_sites(request):
            return [(row.pk, f"{row.site}: {row}") for row in rows.select_related("site")]
        return [(row.pk, str(row)) for row in rows]


class ScopedAdmin(AuditedAdmin[M], Generic[M]):
    """Shows what the person may see; lets change what their role at that row's site allows.

    ``change_right`` names the right that adding, changing and deleting need; None makes the page read-only.
    """

    change_right: ClassVar[Right | None] = None

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[M]:
        queryset = super().get_queryset(request)
        assert isinstance(queryset, ScopedQuerySet)
        return queryset.visible_to(request.user)

    def get_list_filter(self, request: HttpRequest) -> list[Any]:
        """Filters by another row offer only rows the person may see: names of another site's are not for them."""
        return [
            (item, ScopedFilter) if isinstance(item, str) and self._refers(item) else item
            for item in super().get_list_filter(request)
        ]

    def _refers(self, lookup: str) -> bool:
        return get_fields_from_path(self.model, lookup)[-1].is_relation

    def _may_change(self, request: HttpRequest, row: M | None) -> bool:
        if self.change_right is None:
            return False
        if row is None or row.pk is None:
            return holds(request.user, self.change_right)
        rows: Any = self.model._default_manager
        return bool(rows.filter(pk=row.pk).visible_to(request.user, self.change_right).exists())

    def has_module_permission(self, request: HttpRequest) -> bool:
        return holds(request.user, Right.VIEW)

    def has_view_permission(self, request: HttpRequest, obj: M | None = None) -> bool:
        return holds(request.user, Right.VIEW)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self._may_change(request, None)

    def has_change_permission(self, request: HttpRequest, obj: M | None = None) -> bool:
        return self._may_change(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: M | None = None) -> bool:
        return self._may_change(request, obj)

    def get_readonly_fields(self, request: HttpRequest, obj: M | None = None) -> Any:
        """A row stays at the site it was made for: what hangs on it would stay behind."""
        fixed = [self._parent()] if obj is not None and self._parent() not in ("", "pk") else []
        return [*super().get_readonly_fields(request, obj), *fixed]

    def formfield_for_foreignkey(
        self, db_field: models.ForeignKey[Any, Any], request: HttpRequest, **kwargs: Any
    ) -> "ModelChoiceField[Any] | None":
        """Offer only rows the person may use, so that nothing can be moved to or taken from another site."""
        related: Any = db_field.remote_field.model._default_manager.all()
        if isinstance(related, ScopedQuerySet):
            rows = kwargs.pop("queryset", related).visible_to(request.user, self._right_to_refer(db_field))
            if getattr(related.model, "SITE", "") == "site":
                rows = rows.select_related("site")
                kwargs["form_class"] = PlacedChoice if several_sites(request) else ModelChoiceField
            kwargs["queryset"] = rows
            if db_field.name == self._parent() and not db_field.null and rows.count() == 1:
                kwargs["empty_label"] = None  # nothing to choose, so nothing to forget
            kwargs["error_messages"] = {
                "invalid_choice": "Choose one of these: that one belongs to another site, or is gone."
            }
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def _right_to_refer(self, field: models.ForeignKey[Any, Any]) -> Right:
        """To put a row at a site or under a parent one needs the right to change there; else to see is enough."""
        return self.change_right if self.change_right and field.name == self._parent() else Right.VIEW

    def _parent(self) -> str:
        """The field by which a row reaches its site."""
        return str(getattr(self.model, "SITE", "")).partition("__")[0]
