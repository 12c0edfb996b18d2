"""The admin's pages about what takes room in the store: a chart of it, and the orders on a version that free it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from fleet.admin.guarded import actor
from fleet.models import Site
from images import keeping, quota, storing
from images.models import Image, ImageVersion, Storage, VersionStatus

if TYPE_CHECKING:
    from images.admin import OrderAdmin

    _Orders = OrderAdmin[ImageVersion]
else:
    _Orders = object


class StorageOrders(_Orders):
    """Orders on a version's page: how it is kept."""

    def order_forget(self, request: HttpRequest, version: ImageVersion) -> ImageVersion:
        storing.forget(version, actor(request), request.POST.get("reason", ""))
        text = f"{version} is forgotten: its row stays, its artefacts go with the next collection."
        self.message_user(request, text, messages.SUCCESS)
        return version

    def order_archive(self, request: HttpRequest, version: ImageVersion) -> ImageVersion:
        storing.archive(version, actor(request), request.POST.get("reason", ""))
        self.message_user(request, f"{version} is archived; its files go with the next collection.", messages.SUCCESS)
        return version

    def order_restore(self, request: HttpRequest, version: ImageVersion) -> ImageVersion:
        storing.restore(version, actor(request), request.POST.get("reason", ""))
        self.message_user(request, f"{version} is being restored; release it when its page says so.", messages.SUCCESS)
        return version


def storage_of(version: ImageVersion) -> dict[str, Any]:
    """What a version's page says of how it is kept."""
    kept = version.status == VersionStatus.READY and version.storage != Storage.NOTHING
    return {"kept": kept, "needed": version.pk in keeping.holds() if kept else False}


@dataclass(frozen=True)
class Bar:
    """A version's bar: start of its shared part and widths, in percent of the longest."""

    row: quota.VersionUse
    own: float
    shared: float
    needed: bool


@dataclass(frozen=True)
class Place:
    """A site's images, or those of all sites; ``full`` in percent of the limit."""

    site: Site | None
    use: quota.Use
    limit: int
    images: list[tuple[str, list[Bar]]]

    @property
    def full(self) -> float:
        return round(min(100.0, 100 * self.use.bytes / self.limit), 1) if self.limit else 0.0

    @property
    def over(self) -> bool:
        return bool(self.limit) and self.use.bytes > self.limit


def _places(request: HttpRequest) -> Iterator[Place]:
    visible = Image.objects.visible_to(request.user)
    sites: list[Site | None] = [*Site.objects.visible_to(request.user), None]
    uses = [(site, quota.use(visible.filter(site=site))) for site in sites]
    longest = max((row.bytes for _, use in uses for row in use.versions), default=0) or 1
    held = keeping.holds()
    for site, use in uses:
        bars = [
            Bar(row, round(100 * row.own / longest, 2), round(100 * row.shared / longest, 2), row.version.pk in held)
            for row in use.versions
        ]
        images = [(name, list(group)) for name, group in groupby(bars, key=lambda bar: str(bar.row.version.image))]
        if site is not None or images:
            yield Place(site, use, quota.limit_of(site) if site else 0, images)


def storage_page(request: HttpRequest) -> HttpResponse:
    """What the images of each site that the person sees take, by version, as a bar chart with its figures."""
    context = {**admin.site.each_context(request), "title": "Storage of images", "places": list(_places(request))}
    return render(request, "admin/images/storage.html", context)
