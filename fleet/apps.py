from django.apps import AppConfig


class FleetConfig(AppConfig):
    name = "fleet"
    verbose_name = "Sites and clients"

    def ready(self) -> None:
        from fleet import logins  # noqa: F401 - its receivers
        from fleet.api import schema  # noqa: F401 - registers itself
