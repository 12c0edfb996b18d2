"""The one base of all admin pages: it scopes rows to the person's sites and rights to their roles."""

from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from django.contrib import admin
from django.contrib.admin.utils import get_fields_from_path
from django.contrib.auth.models import AnonymousUser, User
from django.db import models, transaction
from django.forms import ModelChoiceField
from django.http import HttpRequest

from fleet import audit
from fleet.models import Membership
from fleet.querysets import ScopedQuerySet, site_of
from fleet.roles import Right, roles_with

M = TypeVar("M", bound=models.Model)


if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin
else:

    class _ModelAdmin(admin.ModelAdmin):
        """Django's, which knows no type parameters while it runs."""

        def __class_getitem__(cls, _: object) -> type:
            return cls


def holds(person: User | AnonymousUser, right: Right) -> bool:
    """True if ``person`` holds ``right`` at any site."""
    if not isinstance(person, User) or not person.is_active:
        return False
    return person.is_superuser or Membership.objects.filter(user=person, role__in=roles_with(right)).exists()


class ScopedFilter(admin.RelatedFieldListFilter):
    """A filter by another row, of those the person may see."""

    def field_choices(self, field: Any, request: HttpRequest, model_admin: "admin.ModelAdmin[Any]") -> list[Any]:
        rows: Any = field.remote_field.model._default_manager.all()
        if isinstance(rows, ScopedQuerySet):
            rows = rows.visible_to(request.user)
        return [(row.pk, str(row)) for row in rows]


class ScopedAdmin(_ModelAdmin[M], Generic[M]):
    """Shows what the person may see; lets change what their role at that row's site allows, and writes down each change.

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

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """The last act of every form: what it changed goes into the audit log, in the transaction that changes it."""
        super().save_related(request, form, formsets, change)
        row = form.instance
        was = {name: _plain(form.initial.get(name)) for name in form.changed_data} if change else {}
        now = {name: _plain(form.cleaned_data.get(name)) for name in form.changed_data}
        parts = {formset.model._meta.verbose_name_plural: _parts(formset) for formset in formsets}
        parts = {str(name): part for name, part in parts.items() if part}
        if now or parts or not change:
            _record(
                request, row, "edited" if change else "added", was=was, now=now, **({"parts": parts} if parts else {})
            )

    @transaction.atomic
    def delete_model(self, request: HttpRequest, obj: M) -> None:
        _record(request, obj, "deleted")
        super().delete_model(request, obj)

    @transaction.atomic
    def delete_queryset(self, request: HttpRequest, queryset: models.QuerySet[M]) -> None:
        for row in queryset:
            _record(request, row, "deleted")
        super().delete_queryset(request, queryset)

    def formfield_for_foreignkey(
        self, db_field: models.ForeignKey[Any, Any], request: HttpRequest, **kwargs: Any
    ) -> "ModelChoiceField[Any] | None":
        """Offer only rows the person may use, so that nothing can be moved to or taken from another site."""
        related: Any = db_field.remote_field.model._default_manager.all()
        if isinstance(related, ScopedQuerySet) and "queryset" not in kwargs:
            kwargs["queryset"] = related.visible_to(request.user, self._right_to_refer(db_field))
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def _right_to_refer(self, field: models.ForeignKey[Any, Any]) -> Right:
        """To put a row at a site or under a parent one needs the right to change there; else to see is enough."""
        parent = str(getattr(self.model, "SITE", "")).partition("__")[0]
        return self.change_right if self.change_right and field.name == parent else Right.VIEW


def _record(request: HttpRequest, row: models.Model, what: str, **detail: Any) -> None:
    audit.record(f"{row._meta.model_name}.{what}", row, site=site_of(row), actor=request.user, **detail)


def _parts(formset: Any) -> dict[str, list[str]]:
    """The rows of an inline that a form added, changed or deleted, in words."""
    done = {
        "added": [str(row) for row in formset.new_objects],
        "changed": [f"{row}: {', '.join(names)}" for row, names in formset.changed_objects],
        "deleted": [str(row) for row in formset.deleted_objects],
    }
    return {what: rows for what, rows in done.items() if rows}


def _plain(value: Any) -> str | int | None:
    """A form's value as JSON; a long text (a hook, a file) by its beginning."""
    if value is None or isinstance(value, bool | int):
        return value
    text = str(value)
    return text if len(text) <= 500 else f"{text[:500]}… ({len(text)} characters)"
