"""Restores of homes: the log that says whose traces were removed, and how long it took."""

from django.contrib import admin
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from agents.models import HomeRestore
from fleet.admin.logs import LogAdmin

COLOURS = 5  # of phases, in admin.css


@admin.register(HomeRestore)
class HomeRestoreAdmin(LogAdmin[HomeRestore]):
    list_display = ["at", "client_name", "class_name", "result", "asked_by", "reason", "files", "size", "took"]
    list_filter = ["site", "result", "class_name"]
    search_fields = ["client_name", "asked_by", "reason"]
    readonly_fields = ["size", "phases"]
    export_fields = (
        *("id", "site", "client", "command", "at", "client_name", "class_name", "asked_by", "reason", "result"),
        *("explanation", "template", "expected", "before", "after", "files", "bytes", "killed", "phases_ms"),
    )
    fieldsets = [
        (
            None,
            {"fields": ["at", "client_name", "class_name", "asked_by", "reason", "result", "explanation", "command"]},
        ),
        ("Thrown away", {"fields": [("files", "size", "killed"), "before"]}),
        ("Restored", {"fields": ["template", "expected", "after", "phases"]}),
    ]

    @admin.display(description="bytes thrown away", ordering="bytes")
    def size(self, restore: HomeRestore) -> str:
        return f"{restore.bytes:,}".replace(",", " ") if restore.bytes is not None else "—"

    @admin.display(description="ms")
    def took(self, restore: HomeRestore) -> str:
        return str(restore.phases_ms.get("total", "—"))

    @admin.display(description="phases")
    def phases(self, restore: HomeRestore) -> SafeString:
        return phases_bar(restore.phases_ms)


def phases_bar(phases: dict[str, int]) -> SafeString:
    """The phases of a cycle as one bar, each as wide as it took, and their names with milliseconds below."""
    parts = [(name, ms) for name, ms in phases.items() if name != "total" and ms > 0]
    whole = sum(ms for _, ms in parts)
    total = phases.get("total", whole)
    if not whole:
        return format_html("{}", "—")
    begins = [sum(ms for _, ms in parts[:number]) for number in range(len(parts))]
    bars = format_html_join(
        "",
        '<rect class="p{}" x="{}" width="{}" height="10"><title>{} {} ms</title></rect>',
        (
            (number % COLOURS, round(1000 * begin / whole), max(1, round(1000 * ms / whole)), name, ms)
            for number, (begin, (name, ms)) in enumerate(zip(begins, parts, strict=True))
        ),
    )
    names = format_html_join(
        "",
        '<li><svg class="key" viewBox="0 0 10 10" aria-hidden="true"><rect class="p{}" width="10" height="10"/></svg>{} {} ms</li>',
        ((number % COLOURS, name, ms) for number, (name, ms) in enumerate(parts)),
    )
    return format_html(
        '<div class="cycle"><svg class="phases" viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" aria-label="{} ms in all">'
        '{}</svg><ul class="phase-names">{}<li><b>total {} ms</b></li></ul></div>',
        total,
        bars,
        names,
        total,
    )
