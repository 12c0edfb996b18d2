"""Files that the site and an upgrade have both changed, in the admin: on the page of their version, to be decided there."""

from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest

from fleet.admin.guarded import actor
from images import merge_orders, merges
from images.admin import OrderAdmin
from images.merge_models import FileMerge, MergeStatus
from images.models import ImageVersion


def merges_of(version: ImageVersion) -> dict[str, Any]:
    """What the page of a version shows of them."""
    rows = version.merges.filter(status=MergeStatus.OPEN)
    return {"merges": [(row, list(merges.sides(row))) for row in rows]}


@admin.register(FileMerge)
class FileMergeAdmin(OrderAdmin[FileMerge]):
    orders = ("keep", "take-package", "take-merged")
    list_display = ["path", "version", "status", "is_clean", "created_at", "decided_by"]
    list_filter = ["status", "version__image"]
    search_fields = ["path"]
    list_select_related = ["version__image", "decided_by"]

    def order_keep(self, request: HttpRequest, row: FileMerge) -> ImageVersion:
        merge_orders.keep(row, actor(request))
        self.message_user(request, f"{row.path} stays as the site has it.", messages.SUCCESS)
        return row.version

    def order_take_package(self, request: HttpRequest, row: FileMerge) -> ImageVersion:
        return self._take(request, row, row.package)

    def order_take_merged(self, request: HttpRequest, row: FileMerge) -> ImageVersion:
        return self._take(request, row, request.POST.get("content", ""))

    def _take(self, request: HttpRequest, row: FileMerge, content: str) -> ImageVersion:
        version = merge_orders.take(row, content, actor(request))
        self.message_user(request, f"{version} is queued: {row.version} with this {row.path}.", messages.SUCCESS)
        return version
