"""Findings in the admin: on the page of their version, with one button to take each one's rule into the recipe."""

from typing import Any

from django.contrib import admin, messages
from django.db.models import Count, QuerySet
from django.http import HttpRequest

from fleet.admin.guarded import actor
from images import findings
from images.admin import OrderAdmin
from images.finding_models import Finding, FindingStatus
from images.models import Image, ImageVersion


def findings_of(version: ImageVersion) -> dict[str, Any]:
    """What the page of a version shows of them: those that wait for a decision, and how many were decided."""
    rows = version.findings.annotate(told_by=Count("clients")).order_by("-told_by", "kind", "subject")
    return {
        "findings": rows.filter(status=FindingStatus.OPEN),
        "decided": rows.exclude(status=FindingStatus.OPEN).count(),
    }


@admin.register(Finding)
class FindingAdmin(OrderAdmin[Finding]):
    orders = ("accept", "dismiss")
    list_display = ["subject", "version", "kind", "source", "rule", "status", "told_by", "bytes", "last_at"]
    list_filter = ["status", "kind", "source", "version__image"]
    search_fields = ["subject", "rule"]
    list_select_related = ["version__image"]
    exclude = ["clients"]  # those of an image that all sites share are not for everybody

    def get_queryset(self, request: HttpRequest) -> QuerySet[Finding]:
        return super().get_queryset(request).annotate(told_by=Count("clients"))

    @admin.display(description="PCs", ordering="told_by")
    def told_by(self, finding: Finding) -> int:
        return int(getattr(finding, "told_by", 0))

    def order_accept(self, request: HttpRequest, finding: Finding) -> Image | ImageVersion:
        image = findings.accept(finding, actor(request))
        self.message_user(
            request, f"{finding.rule!r} is in the recipe of {image} now, for the builds to come.", messages.SUCCESS
        )
        return finding.version

    def order_dismiss(self, request: HttpRequest, finding: Finding) -> ImageVersion:
        findings.dismiss(finding, actor(request))
        self.message_user(request, f"{finding.subject} is dismissed.", messages.SUCCESS)
        return finding.version
