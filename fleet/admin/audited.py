"""Every edit in the admin leaves an audit entry: who, which row, what was and what is. One place, for all pages."""

from typing import Any, Generic, TypeVar

from django.db import models, transaction
from django.http import HttpRequest

from fleet import audit
from fleet.admin.guarded import GuardedAdmin, actor
from fleet.models import Site
from fleet.querysets import site_of

M = TypeVar("M", bound=models.Model)
SECRETS = frozenset({"password", "secure_on"})
LONGEST = 500  # characters of a value (a hook, a file) that an entry keeps


class AuditedAdmin(GuardedAdmin[M], Generic[M]):
    """Writes down each change in the transaction that makes it."""

    def save_model(self, request: HttpRequest, obj: M, form: Any, change: bool) -> None:
        """Before it is overwritten: what the database has, which may be younger than what the form was drawn with."""
        form.was = _values(type(obj)._base_manager.get(pk=obj.pk), form.changed_data) if change else {}
        if not change:
            super().save_model(request, obj, form, change)
            return
        # Only what was edited: the rest of the row is others', and younger by now than when the form was drawn.
        columns = {field.name for field in obj._meta.concrete_fields}
        obj.save(update_fields=[name for name in form.changed_data if name in columns])

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """The last act of every form."""
        super().save_related(request, form, formsets, change)
        detail: dict[str, Any] = {}
        if names := form.changed_data if change else list(form.fields):
            detail = {"was": form.was, "now": _values(form.instance, names)}
        parts = {str(formset.model._meta.verbose_name_plural): _parts(formset) for formset in formsets}
        if parts := {name: part for name, part in parts.items() if part}:
            detail["parts"] = parts
        if detail:
            write_down(request, form.instance, "edited" if change else "added", **detail)

    @transaction.atomic
    def delete_model(self, request: HttpRequest, obj: M) -> None:
        self._write_down_deletion(request, obj)
        super().delete_model(request, obj)

    @transaction.atomic
    def delete_queryset(self, request: HttpRequest, queryset: models.QuerySet[M]) -> None:
        for row in queryset:
            self._write_down_deletion(request, row)
        super().delete_queryset(request, queryset)

    def _write_down_deletion(self, request: HttpRequest, row: M) -> None:
        """With what it was, and how much went with it."""
        names = [field.name for field in row._meta.get_fields() if getattr(field, "editable", False)]
        _, removed, _, _ = self.get_deleted_objects([row], request)
        removed = {str(name): number for name, number in removed.items() if name != row._meta.verbose_name_plural}
        # A chain protects its site: the end of a site without one belongs to no site's chain.
        site = None if isinstance(row, Site) else site_of(row)
        _record(request, row, "deleted", site, was=_values(row, names), **({"removed": removed} if removed else {}))


def write_down(request: HttpRequest, row: models.Model, what: str, **detail: Any) -> None:
    """An entry in the chain of the row's site that the person did ``what`` with it."""
    _record(request, row, what, site_of(row), **detail)


def _record(request: HttpRequest, row: models.Model, what: str, site: Site | None, **detail: Any) -> None:
    audit.record(f"{row._meta.model_name}.{what}", row, site=site, actor=actor(request), **detail)


def _values(row: models.Model, names: list[str]) -> dict[str, Any]:
    """The columns among ``names`` as JSON, other rows by their names; never a secret."""
    fields = {field.name: field for field in row._meta.get_fields() if isinstance(field, models.Field)}
    return {name: _value(row, fields[name]) for name in names if name in fields and name not in SECRETS}


def _value(row: models.Model, field: "models.Field[Any, Any]") -> Any:
    value = getattr(row, field.name)
    return sorted(str(other) for other in value.all()) if field.many_to_many else _plain(value)


def _parts(formset: Any) -> dict[str, list[Any]]:
    """The rows of an inline that a form added, changed or deleted."""
    forms = {id(form.instance): form for form in formset.initial_forms}  # a deleted row has no key any more
    done: dict[str, list[Any]] = {
        "added": [
            {"row": str(row), "now": _values(row, list(formset.form.base_fields))} for row in formset.new_objects
        ],
        "changed": [
            {
                "row": str(row),
                "was": {name: _plain(forms[id(row)].initial.get(name)) for name in names},
                "now": _values(row, names),
            }
            for row, names in formset.changed_objects
        ],
        "deleted": [str(row) for row in formset.deleted_objects],
    }
    return {what: rows for what, rows in done.items() if rows}


def _plain(value: Any) -> str | int | None:
    if value is None or isinstance(value, bool | int):
        return value
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} characters)"
