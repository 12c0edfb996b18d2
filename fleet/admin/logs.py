"""Pages of append-only logs: read, filter, export."""

import json
from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.core.exceptions import PermissionDenied
from django.db import models
from django.http import Http404, HttpRequest, HttpResponseBase, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from fleet.admin.scoped import ScopedAdmin
from fleet.exports import WRITERS, download
from fleet.models import AuditEntry

M = TypeVar("M", bound=models.Model)


def pretty(content: object) -> SafeString:
    """JSON to be read by people."""
    text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True)
    return format_html('<pre class="detail">{}</pre>', text)


class LogAdmin(ScopedAdmin[M]):
    """Nothing here is added, changed or deleted; what the filters leave can be taken home as CSV or JSON lines."""

    change_list_template = "admin/fleet/log.html"
    date_hierarchy = "at"
    export_fields: ClassVar[tuple[str, ...]] = ()
    show_full_result_count = False  # the log grows for ever, and counting all of it would too

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.export)
        return [path("export/<slug:kind>/", view, name=f"{self._name()}_export"), *super().get_urls()]

    def export(self, request: HttpRequest, kind: str) -> HttpResponseBase:
        """The filtered list, oldest first, as one file."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        if kind not in WRITERS:
            raise Http404(f"There is no export as {kind}.")
        try:
            found: Any = self.get_changelist_instance(request)
        except IncorrectLookupParameters:  # the list explains it
            return HttpResponseRedirect(reverse(f"admin:{self._name()}_changelist") + "?e=1")
        rows = found.get_queryset(request).order_by("at", "pk")
        return download(request, str(self.opts.model_name), kind, self._plain(rows), self.export_fields)

    def _name(self) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}"

    def _plain(self, rows: models.QuerySet[M]) -> Iterator[dict[str, Any]]:
        yield from rows.values(*self.export_fields).iterator(chunk_size=500)


@admin.register(AuditEntry)
class AuditEntryAdmin(LogAdmin[AuditEntry]):
    list_display = ["at", "actor", "action", "subject", "site", "sequence"]
    list_filter = ["site", "action", "actor"]
    list_select_related = ["site"]
    search_fields = ["actor", "action", "subject"]
    export_fields = (
        *("id", "chain", "sequence", "site", "at", "actor", "action", "subject", "subject_type", "subject_id"),
        *("subject_seal", "detail", "previous", "digest"),
    )
    fields = ["at", "actor", "action", "subject", "details", "chain", "sequence", "previous", "digest", "subject_seal"]
    readonly_fields = ["details"]

    @admin.display(description="detail")
    def details(self, entry: AuditEntry) -> SafeString:
        return pretty(entry.detail)
