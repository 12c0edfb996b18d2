from django.apps import AppConfig
from django.contrib.admin import apps as admin


class FleetAdminConfig(admin.AdminConfig):
    """Django's admin with our site."""

    default = False
    default_site = "fleet.admin_site.FleetAdminSite"


class FleetConfig(AppConfig):
    default = True
    name = "fleet"
    verbose_name = "Sites and clients"

    def ready(self) -> None:
        from fleet import checks, logins  # noqa: F401 - its checks and receivers
