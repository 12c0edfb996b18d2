"""The admin's pages about releases: canaries to start, promote and withdraw, roll-backs, and two versions beside each other."""

import re
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib import admin, messages
from django.db.models import Q
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.text import capfirst

from fleet.admin.guarded import actor
from fleet.exceptions import OperatorError
from fleet.models import Client, ClientClass
from images import releasing
from images.builder.errors import BuildError
from images.builder.store import Store
from images.comparing import Files, compare, compare_files
from images.models import ImageVersion, Release, VersionStatus

if TYPE_CHECKING:
    from images.admin import OrderAdmin

    _Versions = OrderAdmin[ImageVersion]
    _Releases = OrderAdmin[Release]
else:
    _Versions = _Releases = object

MOST_SHOWN = 500  # paths of each kind


def named_clients(client_class: ClientClass, text: str) -> list[Client]:
    """The clients of a class that are named by seat or name, with commas or spaces between. OperatorError names a stranger."""
    words = [word for word in re.split(r"[\s,;]+", text) if word]
    found = []
    for word in words:
        client = Client.objects.filter(Q(seat__iexact=word) | Q(name__iexact=word), client_class=client_class).first()
        if client is None:
            raise OperatorError(f"{client_class} has no client {word}.", hint="Name clients by seat or by name.")
        found.append(client)
    return found


def whole(text: str, name: str, least: int, most: int) -> int:
    """A number as typed. OperatorError for what is none."""
    value = int(text) if text.isascii() and text.isdecimal() and len(text) < 9 else -1
    if not least <= value <= most:
        raise OperatorError(f"{capfirst(name)} is a whole number from {least} to {most}.", hint="Correct it.")
    return value


class CanaryOrders(_Versions):
    """On a version's page: try it on some clients first; compare it with another."""

    def order_canary(self, request: HttpRequest, version: ImageVersion) -> Release:
        from images.admin import chosen_class

        asked, client_class = request.POST, chosen_class(request)
        limits = releasing.Limits(
            whole(asked.get("ready_within_s", "300"), "the limit in seconds", 10, 3600),
            whole(asked.get("most_bad", "2"), "the number of bad clients", 0, 10000),
        )
        canary = releasing.start(
            version,
            client_class,
            actor(request),
            asked.get("reason", ""),
            share=whole(asked.get("share") or "0", "the share", 0, 100),
            clients=named_clients(client_class, asked.get("clients", "")),
            limits=limits,
        )
        who = ", ".join(str(client) for client in releasing.clients_of(canary)[:8]) or "no client yet"
        self.message_user(request, f"At their next boot these get {version}: {who}.", messages.SUCCESS)
        return canary

    def compare_view(self, request: HttpRequest, pk: int, other: int) -> HttpResponse:
        """What is different from an older version; with ``?files`` the paths of the roots, too."""
        new, old = self.row(request, pk), self.row(request, other)
        if old.contents is None or new.contents is None:
            raise Http404("Only ready versions can be compared.")
        files: Files | None = None
        failure = ""
        if "files" in request.GET:
            try:
                files = compare_files(old.contents, new.contents, Store(settings.STORE))
            except BuildError as error:
                failure = str(error)
        context = {
            **admin.site.each_context(request),
            "title": f"{new} beside {old}",
            "old": old,
            "new": new,
            "found": compare(old.contents, new.contents),
            "files": files,
            "failure": failure,
            "most": MOST_SHOWN,
        }
        return render(request, "admin/images/imageversion/compare.html", context)


def others_of(version: ImageVersion) -> Any:
    """Ready versions of the same image to compare with, newest first."""
    ready = ImageVersion.objects.filter(image=version.image, status=VersionStatus.READY).exclude(pk=version.pk)
    return ready.select_related("image").defer("manifest", "recipe").order_by("-number")[:20]


class CanaryEnds(_Releases):
    """On a release's page: what becomes of a canary."""

    def order_promote(self, request: HttpRequest, release: Release) -> Release:
        new = releasing.promote(release, actor(request), request.POST.get("reason", ""))
        text = f"All clients of {release.client_class} boot {new.version} from their next boot on."
        self.message_user(request, text, messages.SUCCESS)
        return new

    def order_withdraw(self, request: HttpRequest, release: Release) -> Release:
        releasing.withdraw(release, actor(request), request.POST.get("reason", ""))
        text = f"{release.version} is withdrawn: its clients boot what all of {release.client_class} boot."
        self.message_user(request, text, messages.SUCCESS)
        return release
