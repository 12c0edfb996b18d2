from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from fleet import audit
from fleet.models import AuditHead, Site


class Command(BaseCommand):
    help = "Proves the audit chains: finds a row changed, removed, inserted or reordered. Exit code 1 with a fault."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("action", choices=["verify"])
        parser.add_argument("--site", default="", help="slug of a site (default: all chains)")

    def handle(self, *args: Any, **options: Any) -> None:
        site = None
        if options["site"]:
            site = Site.objects.filter(slug=options["site"]).first()
            if site is None:
                raise CommandError(f"There is no site {options['site']!r}.")
        faults = list(audit.verify(site))
        for fault in faults:
            self.stdout.write(str(fault))
        for head in AuditHead.objects.order_by("chain"):
            self.stdout.write(f"{head.chain}: {head.sequence} entries, head {head.digest}")
        if faults:
            raise CommandError(f"{len(faults)} faults.")
