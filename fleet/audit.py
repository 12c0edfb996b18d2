"""The audit log: the only writer and the reader of its chains.

Each site has a chain; what belongs to no site (a failed login) is in the chain ``everywhere``. An entry carries the SHA-256 of
its canonical JSON, which holds the digest of the entry before. Rows that matter in themselves (a model with a ``sealed()``
method, as HomeRestore) are sealed: their entry carries the SHA-256 of their content. ``verify`` recomputes all of it.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from django.apps import apps
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db import IntegrityError, models, transaction
from django.db.models import Exists, OuterRef
from django.db.models.functions import Cast
from django.utils import timezone

from fleet import logs
from fleet.models import AuditEntry, AuditHead, Site
from fleet.rows import insert_rows

log = logging.getLogger(__name__)
EVERYWHERE = "everywhere"
CHUNK = 500
Actor = AbstractBaseUser | AnonymousUser | str | None


@runtime_checkable
class Sealed(Protocol):
    """A row whose content the chain vouches for."""

    def sealed(self) -> dict[str, Any]: ...


def canonical(content: Any) -> bytes:
    """JSON that is the same for the same content: sorted keys, no spaces, times in UTC with microseconds."""

    def plain(value: Any) -> str:
        if isinstance(value, datetime):
            return value.astimezone(UTC).isoformat(timespec="microseconds")
        raise TypeError(f"{type(value).__name__} cannot stand in an audit entry: {value!r}")

    return json.dumps(content, sort_keys=True, separators=(",", ":"), default=plain, ensure_ascii=False).encode()


def _sha256(content: Any) -> str:
    return hashlib.sha256(canonical(content)).hexdigest()


def _digest(entry: AuditEntry) -> str:
    columns = (
        "chain", "sequence", "site_id", "at", "actor", "action", "subject", "subject_type", "subject_id", "subject_seal",
        "detail", "previous",
    )  # fmt: skip
    return _sha256({column: getattr(entry, column) for column in columns})


def actor_name(actor: Actor) -> str:
    """A person's user name; a part of the server by its name; ``nobody`` for strangers."""
    if isinstance(actor, str):
        return actor
    return actor.get_username() if actor is not None and actor.is_authenticated else "nobody"


@dataclass(frozen=True)
class Event:
    """What one entry tells; ``detail`` is JSON: text, whole numbers, lists, dictionaries."""

    action: str
    subject: models.Model | str
    actor: Actor
    detail: dict[str, Any] = field(default_factory=dict)


def hold(site: Site | None) -> AuditHead:
    """Be the one who writes into the chain of ``site`` until the present transaction ends.

    For those who change many rows before they write down how many: whoever holds the chain may be about to change one of these.
    """
    chain = f"site-{site.pk}" if site else EVERYWHERE
    AuditHead.objects.get_or_create(chain=chain)
    return AuditHead.objects.select_for_update().get(chain=chain)


def record(action: str, subject: models.Model | str, *, site: Site | None, actor: Actor, **detail: Any) -> AuditEntry:
    """Append an entry to the chain of ``site`` within the present transaction: it stands or falls with what it tells of.

    The head row is the lock, so entries of a site are written one after the other.
    """
    return record_many(site, [Event(action, subject, actor, detail)])[0]


@transaction.atomic
def record_many(site: Site | None, events: Sequence[Event]) -> list[AuditEntry]:
    """Append an entry for each of ``events``, in this order; few statements however many there are.

    Keys of the rows are known to the database alone, unless there is one.
    """
    head, now = hold(site), timezone.now()
    entries = []
    for event in events:
        entry = AuditEntry(
            chain=head.chain,
            sequence=head.sequence + 1,
            site=site,
            at=now,
            actor=actor_name(event.actor)[:150],
            action=event.action,
            subject=str(event.subject)[:200],
            detail=event.detail,
            previous=head.digest,
        )
        if isinstance(event.subject, models.Model):
            entry.subject_type, entry.subject_id = event.subject._meta.label, str(event.subject.pk)
            if isinstance(event.subject, Sealed):
                entry.subject_seal = _sha256(event.subject.sealed())
        entry.digest = _digest(entry)
        head.sequence, head.digest = entry.sequence, entry.digest
        entries.append(entry)
    if len(entries) == 1:
        entries[0].save(force_insert=True)
    elif entries:
        rows = ([getattr(entry, column) for column in _OWN] for entry in entries)
        if insert_rows(AuditEntry(chain=head.chain, site=site, at=now), _OWN, rows) != len(entries):
            raise IntegrityError(f"The chain {head.chain} has entries beyond its end.")
    head.save(update_fields=["sequence", "digest"])
    for entry, event in zip(entries, events, strict=True):
        if not entry.subject_seal:  # who seals a row says more of it than could be said here
            _tell(entry, event.subject)
    return entries


# What entries that are written together do not have in common.
_OWN = (
    "sequence", "actor", "action", "subject", "subject_type", "subject_id", "subject_seal", "detail", "previous", "digest",
)  # fmt: skip


def _tell(entry: AuditEntry, subject: models.Model | str) -> None:
    """The same in the log of this process, where it stands beside what came of it; of a list only how long it is."""
    short = {name: len(value) if isinstance(value, list) else value for name, value in entry.detail.items()}
    plain = {name: value for name, value in short.items() if isinstance(value, str | int)}
    which = {str(subject._meta.model_name): subject.pk} if isinstance(subject, models.Model) else {}
    site = {"site": entry.site.slug} if entry.site else {}
    fields = {**plain, **which, **site}
    logs.once_committed(log.info, "%s: %s by %s", entry.action, entry.subject, entry.actor, **fields)


@dataclass(frozen=True)
class Fault:
    """Something that was done behind the log's back, in words."""

    chain: str
    sequence: int
    text: str

    def __str__(self) -> str:
        return f"{self.chain} #{self.sequence}: {self.text}"


def _sealed_models() -> list[type[models.Model]]:
    return [model for model in apps.get_models() if hasattr(model, "sealed")]


def verify(site: Site | None = None) -> Iterator[Fault]:
    """Every fault of the chains (of ``site``, or of all): rows changed, removed, inserted, reordered or cut off.

    Reads in the chain's order with constant memory, while others go on writing: each chain is proved up to the end it has
    when its turn comes.
    """
    chains, entries = AuditHead.objects.all(), AuditEntry.objects.order_by()
    if site is not None:
        chains, entries = chains.filter(chain=f"site-{site.pk}"), entries.filter(chain=f"site-{site.pk}")
    for chain in sorted(chains.values_list("chain", flat=True).union(entries.values_list("chain", flat=True))):
        yield from _verify_chain(chain)
    for model in _sealed_models():
        yield from _unsealed(model, site)


def _verify_chain(chain: str) -> Iterator[Fault]:
    entries = AuditEntry.objects.filter(chain=chain)
    # In this order: an entry and the head it moves are committed together, so the head is never behind what was there.
    newest = entries.aggregate(newest=models.Max("sequence"))["newest"] or 0
    head = AuditHead.objects.filter(chain=chain).first()
    if head is None:
        yield Fault(chain, newest, "has no recorded end: the head of the chain was removed.")
        head = AuditHead(chain=chain, sequence=newest)
    elif newest > head.sequence:
        yield Fault(chain, newest, f"the chain should end at #{head.sequence}: entries at its end were added.")
    expected, previous = 1, ""
    for entry, sealed in _with_sealed(entries.filter(sequence__lte=head.sequence).order_by("sequence")):
        if entry.sequence != expected:
            yield Fault(chain, entry.sequence, f"{_range(expected, entry.sequence - 1)} before it is missing.")
        elif entry.previous != previous:
            yield Fault(
                chain,
                entry.sequence,
                "does not follow the entry before it: one of them was replaced or moved.",
            )
        if entry.digest != _digest(entry):
            yield Fault(chain, entry.sequence, f"was changed since it was written ({entry.action} {entry.subject}).")
        if entry.subject_seal:
            yield from _verify_seal(entry, sealed)
        expected, previous = entry.sequence + 1, entry.digest
    if expected <= head.sequence:
        yield Fault(chain, head.sequence, f"{_range(expected, head.sequence)} at the end of the chain is missing.")
    elif head.digest and previous != head.digest:
        yield Fault(chain, head.sequence, "the end of the chain is not the entry that was written there.")


def _range(first: int, last: int) -> str:
    return f"#{first}" if first == last else f"#{first} to #{last}"


def _with_sealed(entries: models.QuerySet[AuditEntry]) -> Iterator[tuple[AuditEntry, models.Model | None]]:
    """Each entry with the row it seals, if it seals one and that is there; two queries for CHUNK entries."""
    every = entries.iterator(chunk_size=CHUNK)
    while chunk := list(islice(every, CHUNK)):
        wanted: dict[str, list[str]] = {}
        for entry in chunk:
            if entry.subject_seal:
                wanted.setdefault(entry.subject_type, []).append(entry.subject_id)
        rows = {
            (label, str(pk)): row
            for label, keys in wanted.items()
            for pk, row in apps.get_model(label)._default_manager.in_bulk(keys).items()
        }
        for entry in chunk:
            yield entry, rows.get((entry.subject_type, entry.subject_id))


def _verify_seal(entry: AuditEntry, row: models.Model | None) -> Iterator[Fault]:
    if row is None:
        yield Fault(entry.chain, entry.sequence, f"the {entry.subject_type} {entry.subject_id} it seals was removed.")
    elif not isinstance(row, Sealed) or _sha256(row.sealed()) != entry.subject_seal:
        yield Fault(entry.chain, entry.sequence, f"the {entry.subject_type} {entry.subject_id} it seals was changed.")


def _unsealed(model: type[models.Model], site: Site | None) -> Iterator[Fault]:
    """Rows that no entry seals: they were inserted behind the log's back."""
    rows = model._default_manager.all() if site is None else model._default_manager.filter(site=site)
    label = model._meta.label
    entry = AuditEntry.objects.filter(subject_type=label, subject_id=OuterRef("key")).exclude(subject_seal="")
    inserted = rows.annotate(key=Cast("pk", models.CharField(max_length=40))).exclude(Exists(entry))
    for row in inserted.order_by("pk").iterator(chunk_size=CHUNK):
        yield Fault(f"site-{getattr(row, 'site_id', '')}", 0, f"the {label} {row.pk} has no entry: it was inserted.")
