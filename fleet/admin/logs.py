"""Pages of append-only logs: read, filter, export."""

import json
from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import models
from django.http import Http404, HttpRequest, StreamingHttpResponse
from django.urls import URLPattern, path
from django.utils.html import format_html
from django.utils.safestring import SafeString

from fleet.admin.scoped import ScopedAdmin
from fleet.exports import WRITERS
from fleet.models import AuditEntry

M = TypeVar("M", bound=models.Model)


class LogAdmin(ScopedAdmin[M]):
    """Nothing here is added, changed or deleted; what the filters leave can be taken home as CSV or JSON lines."""

    change_list_template = "admin/fleet/log.html"
    date_hierarchy = "at"
    export_fields: ClassVar[tuple[str, ...]] = ()
    show_full_result_count = False  # the log grows for ever, and counting all of it would too

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_export"
        return [path("export/<slug:kind>/", self.admin_site.admin_view(self.export), name=name), *super().get_urls()]

    def export(self, request: HttpRequest, kind: str) -> StreamingHttpResponse:
        """The filtered list, oldest first, as one file."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        if kind not in WRITERS:
            raise Http404(f"There is no export as {kind}.")
        write, content_type = WRITERS[kind]
        found: Any = self.get_changelist_instance(request)
        rows = found.get_queryset(request).order_by("at", "pk")
        answer = StreamingHttpResponse(write(self._plain(rows), self.export_fields), content_type=content_type)
        answer["Content-Disposition"] = f'attachment; filename="{self.opts.model_name}.{kind}"'
        return answer

    def _plain(self, rows: models.QuerySet[M]) -> Iterator[dict[str, Any]]:
        yield from rows.values(*self.export_fields).iterator(chunk_size=500)


@admin.register(AuditEntry)
class AuditEntryAdmin(LogAdmin[AuditEntry]):
    list_display = ["at", "actor", "action", "subject", "site", "sequence"]
    list_filter = ["site", "action"]
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
        text = json.dumps(entry.detail, indent=2, ensure_ascii=False, sort_keys=True)
        return format_html('<pre class="detail">{}</pre>', text)
