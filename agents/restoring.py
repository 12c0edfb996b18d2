"""The rows that restores of homes leave: one for each cycle that ended, whoever says how, sealed into its site's chain."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from uuid import UUID

from django.db import IntegrityError, transaction
from django.utils import timezone

from agents import metrics
from agents.models import CommandStatus, HomeRestore, RestoreResult
from agents.stories import Story
from fleet import audit
from fleet.models import Site
from fleet.rows import insert_rows

PHASES = ("kill", "restore", "verify", "unmount", "login", "total")
RESULTS = {
    CommandStatus.SUCCEEDED: RestoreResult.RESTORED,
    CommandStatus.FAILED: RestoreResult.FAILED,
    CommandStatus.REFUSED: RestoreResult.REFUSED,
    CommandStatus.LOST: RestoreResult.LOST,
}
_OWN = (
    *("client", "command", "client_name", "class_name", "asked_by", "reason", "result", "explanation"),
    *("template", "expected", "before", "after", "files", "bytes", "killed", "phases_ms"),
)
_KEYS = ("client", "command")


def record(cycles: Sequence[Story], measured: Mapping[UUID, Mapping[str, Any]]) -> dict[UUID, HomeRestore]:
    """Write down the restores of these cycles, which have ended, and seal them, within the present transaction; by command.

    ``measured`` is what their clients told (docs/protocol.md), in its right form.
    """
    sites = Site.objects.in_bulk({cycle.site for cycle in cycles}) if cycles else {}
    restores: dict[UUID, HomeRestore] = {}
    for pk, site in sites.items():
        mine = [cycle for cycle in cycles if cycle.site == pk]
        restores |= _seal(site, mine, [_row(cycle, measured[cycle.pk]) for cycle in mine])
    return restores


def _row(cycle: Story, measured: Mapping[str, Any]) -> HomeRestore:
    phases = measured.get("phases_ms", {})
    return HomeRestore(
        site_id=cycle.site,
        client_id=cycle.client,
        command_id=cycle.pk,
        client_name=cycle.who[:100],
        class_name=cycle.class_name,
        asked_by=cycle.by or audit.actor_name(None),
        reason=cycle.why,
        result=RESULTS[CommandStatus(cycle.status)],
        explanation=cycle.reason,
        template=measured.get("template", ""),
        expected=cycle.args.get("home_digest", ""),
        before=measured.get("before", ""),
        after=measured.get("after", ""),
        files=measured.get("files"),
        bytes=measured.get("bytes"),
        killed=measured.get("killed"),
        phases_ms={name: phases[name] for name in PHASES if name in phases},
    )


def _seal(site: Site, cycles: Sequence[Story], restores: Sequence[HomeRestore]) -> dict[UUID, HomeRestore]:
    """Store the rows of a site, all at the same moment, and an entry for each."""
    now = timezone.now()
    rows = ([getattr(restore, f"{name}_id" if name in _KEYS else name) for name in _OWN] for restore in restores)
    if insert_rows(HomeRestore(site=site, at=now), _OWN, rows) != len(restores):
        raise IntegrityError("One of these restores was written down before.")
    stored = HomeRestore.objects.filter(command__among=[cycle.pk for cycle in cycles])
    keys = dict(stored.order_by().values_list("command", "pk"))
    events = []
    for cycle, restore in zip(cycles, restores, strict=True):
        restore.pk, restore.at = keys[cycle.pk], now
        detail = {"result": str(restore.result), "order": str(cycle.order)}
        events.append(audit.Event("restore", restore, restore.asked_by, detail))
    audit.record_many(site, events)
    transaction.on_commit(partial(metrics.restored, restores))
    return {cycle.pk: restore for cycle, restore in zip(cycles, restores, strict=True)}
