from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connection

from agents import grants


class Command(BaseCommand):
    help = (
        "Prints SQL that makes a database user for each process (fleet_web, fleet_gateway, fleet_sender, fleet_builds) and gives it the "
        "rights it needs, as in: manage.py grants | sudo -u postgres psql --single-transaction fleet. After each upgrade, too."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        if connection.vendor != "postgresql":
            raise CommandError("SQLite has no users: whoever may write the file may write all of it. Use PostgreSQL.")
        self.stdout.write("\n".join(f"{statement};" for statement in grants.statements()))
