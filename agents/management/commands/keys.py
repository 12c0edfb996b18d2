from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from fleet.signing import make_keys


class Command(BaseCommand):
    help = "Makes the key pairs that sign commands, boot plans and image versions, where they are missing."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        for path in make_keys(settings.PUBLIC_KEYS):
            self.stdout.write(f"Made {path}")
