import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import redis
from django.apps import apps
from django.core.management.base import BaseCommand, CommandError
from django.db.models import Max, Model, QuerySet
from django.utils import timezone

from fleet import alive, audit, checkpoints
from fleet.exceptions import FleetError
from fleet.exports import WRITERS
from fleet.models import AuditCheckpoint, AuditHead, Site

# What can be taken out, by name: the log itself, and the rows it seals (fleet names other apps only by string).
LOGS = {"entries": "fleet.AuditEntry", "restores": "agents.HomeRestore"}


class Command(BaseCommand):
    help = "Proves the audit chains, or writes the log out as CSV or JSON lines."

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="action", required=True)
        verify = commands.add_parser(
            "verify", help="find a row changed, removed, inserted or reordered; exit code 1 with a fault"
        )
        export = commands.add_parser("export", help="write the log out, oldest first")
        verify.add_argument(
            "--book",
            type=Path,
            help="the sender's own book, which knows signed heads that were removed (FLEET_SENDER_BOOK)",
        )
        for command in (verify, export):
            command.add_argument("--site", default="", help="slug of a site (default: all)")
        export.add_argument("--what", choices=LOGS, default="entries", help="default: entries")
        export.add_argument("--format", choices=WRITERS, default="csv", help="default: csv")
        export.add_argument("--since", type=moment, help="from this time on, as in 2026-11-01 or 2026-11-01T18:00")
        export.add_argument("--until", type=moment, help="before this time")
        export.add_argument("--out", type=Path, help="a new file (default: standard output)")

    def handle(self, *args: Any, **options: Any) -> None:
        site = None
        if options["site"]:
            site = Site.objects.filter(slug=options["site"]).first()
            if site is None:
                known = ", ".join(Site.objects.values_list("slug", flat=True)) or "none yet"
                raise CommandError(f"There is no site {options['site']!r}; there are: {known}.")
        if options["action"] == "verify":
            self._verify(site, options["book"])
        else:
            self._export(site, options)

    def _verify(self, site: Site | None, book: Path | None) -> None:
        try:
            faults = [*audit.verify(site), *checkpoints.faults(site, book)]
        except FleetError as error:
            raise CommandError(str(error)) from None
        if site is None:
            with suppress(redis.RedisError):  # for the monitor, who may be told another time
                alive.say_audited(len(faults))
        for fault in faults:
            self.stdout.write(str(fault))
        newest = dict(AuditCheckpoint.objects.order_by().values_list("chain").annotate(Max("sequence")))
        heads = AuditHead.objects.order_by("chain")
        for head in heads if site is None else heads.filter(chain=f"site-{site.pk}"):
            signed = f"signed up to #{newest[head.chain]}" if head.chain in newest else "not signed yet"
            self.stdout.write(f"{head.chain}: {head.sequence} entries, {signed}, head {head.digest}")
        if faults:
            raise CommandError("1 fault." if len(faults) == 1 else f"{len(faults)} faults.")

    def _export(self, site: Site | None, options: dict[str, Any]) -> None:
        rows: QuerySet[Any] = apps.get_model(LOGS[options["what"]])._default_manager.order_by("at", "pk")
        limits = {"site": site, "at__gte": options["since"], "at__lt": options["until"]}
        rows = rows.filter(**{name: value for name, value in limits.items() if value is not None})
        fields = [field.attname for field in rows.model._meta.concrete_fields]
        write, _ = WRITERS[options["format"]]
        lines = write(plain(rows, fields), fields)
        if options["out"] is None:
            try:
                sys.stdout.writelines(lines)
                sys.stdout.flush()
            except BrokenPipeError:  # as in `… | head`; Python would complain of it once more at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        try:
            with options["out"].open("x", encoding="utf-8", newline="") as file:
                file.writelines(lines)
        except OSError as error:
            if not isinstance(error, FileExistsError):
                options["out"].unlink(missing_ok=True)  # half a log looks like a whole one
            raise CommandError(f"{options['out']} cannot be written: {error.strerror}.") from error


def moment(text: str) -> datetime:
    """A time in the server's zone unless it names one; ValueError (argparse tells it) for what is none."""
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else timezone.make_aware(at)


def plain(rows: QuerySet[Any], fields: list[str]) -> Iterator[dict[str, Any]]:
    for row in rows.iterator(chunk_size=500):
        assert isinstance(row, Model)
        yield {field: getattr(row, field) for field in fields}
