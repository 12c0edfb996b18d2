"""The admin site: its name, and its pages in the order in which people need them. Outside of ``fleet.admin``, which registers with it."""

from typing import Any

from django.contrib.admin import AdminSite
from django.contrib.auth.models import User
from django.db import transaction
from django.http import HttpRequest

from fleet import audit
from fleet.health import look

# Pages by what they are for, not by which part of the program keeps the rows. Other apps are named only by string.
GROUPS = {
    "Clients": (
        *("fleet.Client", "fleet.Tag", "agents.Campaign", "agents.Target", "agents.Order", "agents.Command"),
        "agents.PowerPort",
    ),
    "Images": (
        *("images.Image", "images.ImageVersion", "images.Release", "images.HomeTemplate"),
        *("images.Layer", "images.LayerBuild"),
    ),
    "Sites": (
        "fleet.Site",
        "fleet.ClientClass",
        "fleet.HardwareRule",
        "fleet.Membership",
        "agents.Cap",
        "agents.Freeze",
    ),
    "Logs": ("agents.HomeRestore", "agents.BootSession", "agents.Wake", "fleet.AuditEntry"),
    "Accounts": ("fleet.ApiToken", "auth.User", "auth.Group"),
}


class FleetAdminSite(AdminSite):
    site_header = site_title = "Stateless Fleet"
    index_title = "Administration"
    site_url = None  # the board is linked by its name (templates/admin/base_site.html)

    @transaction.atomic
    def password_change(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """One's own, written down as every other edit."""
        before = getattr(request.user, "password", None)
        answer = super().password_change(request, extra_context)
        if isinstance(request.user, User) and request.user.password != before:
            audit.record("user.password-set", request.user, site=None, actor=request.user)
        return answer

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """The state of the server, too, for those who can do something about it."""
        health = look() if request.user.is_active and request.user.is_superuser else None
        return super().index(request, {**(extra_context or {}), "health": health})

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> list[Any]:
        """The pages the person may open, by GROUPS; what no group names stands in its app's own."""
        apps = super().get_app_list(request, app_label)
        if app_label is not None:
            return apps
        pages = {page["model"]._meta.label: page for app in apps for page in app["models"]}
        grouped = [
            {"name": name, "app_label": name.lower(), "app_url": "", "has_module_perms": True, "models": found}
            for name, labels in GROUPS.items()
            if (found := [pages.pop(label) for label in labels if label in pages])
        ]
        left = [
            app | {"models": [page for page in app["models"] if page["model"]._meta.label in pages]} for app in apps
        ]
        return grouped + [app for app in left if app["models"]]
