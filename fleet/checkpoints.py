"""Signed heads of the audit chains. Who owns the database can write a chain anew so that it is right in itself, but not sign it.

The sender signs how far each chain goes, about once a minute, with the command key; and only what goes on from what it saw before,
which it keeps in a book of its own (``agents.book``). So a chain that was cut or written anew is signed no more, and the signatures of
before do not fit it.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path

from django.conf import settings
from django.db.models import OuterRef, Subquery
from django.utils import timezone

from fleet import audit
from fleet.audit import Fault
from fleet.exceptions import OperatorError, SiteError
from fleet.models import AuditCheckpoint, AuditEntry, AuditHead, Site
from fleet.signing import Signer, verify
from fleet.slots import ever

AT_ONCE = 5000  # entries of a chain that are read in one go: the sender has other things to do
Point = tuple[int, str]  # an entry's sequence and digest
BEGIN: Point = (0, "")


def checkpoint_bytes(chain: str, sequence: int, digest: str, at: datetime) -> bytes:
    """What is signed. It cannot be taken for an envelope, which is JSON from its first byte on, nor an envelope for it."""
    said = {"chain": chain, "sequence": sequence, "digest": digest, "at": at}
    return b"audit checkpoint 1\n" + audit.canonical(said)


def due(seen: dict[str, Point]) -> list[str]:
    """The chains that are not where they were ``seen`` last."""
    return [
        chain
        for chain, *head in AuditHead.objects.order_by("chain").values_list("chain", "sequence", "digest")
        if tuple(head) != seen.get(chain, BEGIN)
    ]


def sign(signer: Signer, chain: str, since: Point) -> Point:
    """Sign how far ``chain`` goes on from ``since``, an entry that was seen before; where that is. Signing twice changes nothing.

    SiteError where it does not go on from there: then nothing more of it may be signed.
    """
    sequence, digest = reached = _proved(chain, since)
    if reached != since:
        at = timezone.now()
        signature = signer.sign(checkpoint_bytes(chain, sequence, digest, at))
        fields = {"digest": digest, "at": at, "key_id": signer.key_id, "signature": signature}
        AuditCheckpoint.objects.bulk_create(
            [AuditCheckpoint(chain=chain, sequence=sequence, **fields)], ignore_conflicts=True
        )
    return reached


def _proved(chain: str, since: Point) -> Point:
    """The last entry, or one AT_ONCE entries on, to which the chain leads from ``since`` without a break."""
    entries = AuditEntry.objects.filter(chain=chain)
    sequence, digest = since
    first = max(sequence, 1)  # what was seen is looked at again
    expected, previous = first, None if sequence else ""
    for entry in (
        entries.filter(sequence__gte=first).order_by("sequence")[: AT_ONCE + 1].iterator(chunk_size=audit.CHUNK)
    ):
        right = entry.sequence == expected and entry.digest == audit._digest(entry)
        follows = entry.digest == digest if previous is None else entry.previous == previous
        if not right or not follows:
            break
        expected, previous = entry.sequence + 1, entry.digest
    else:
        if previous is not None:
            return expected - 1, previous
    raise SiteError(
        f"The chain {chain} does not go on at #{expected} from what was seen of it up to #{sequence}: it was changed, cut or "
        "written anew. Nothing more of it is signed.",
        hint="`manage.py audit verify` says what is wrong; look who can write to the database, and restore a backup.",
    )


def faults(site: Site | None = None, book: Path | None = None) -> Iterator[Fault]:
    """What does not fit the signed heads: of ``site``, or of all. ``book`` is the sender's own; it knows what was removed, too."""
    there = AuditEntry.objects.filter(chain=OuterRef("chain"), sequence=OuterRef("sequence")).values("digest")[:1]
    signed = AuditCheckpoint.objects.order_by("chain", "sequence").annotate(now=Subquery(there))
    if site is not None:
        signed = signed.filter(chain=f"site-{site.pk}")
    keys = ever(settings.PUBLIC_KEYS, "command")
    known = set[tuple[str, int]]()
    for checkpoint in signed.iterator(chunk_size=audit.CHUNK):
        chain, sequence, digest = checkpoint.chain, checkpoint.sequence, checkpoint.digest
        public = keys.get(checkpoint.key_id)
        said = checkpoint_bytes(chain, sequence, digest, checkpoint.at)
        if public is None:
            key = checkpoint.key_id
            yield Fault(chain, sequence, f"its signed head is by the key {key}, which was never one of this server's.")
        elif not verify(public, said, bytes(checkpoint.signature)):
            yield Fault(
                chain, sequence, "the signature of its head is wrong: somebody without the command key wrote it."
            )
        else:
            known.add((chain, sequence))
            yield from _unlike(chain, sequence, digest, checkpoint.now, "the sender signed")
    if book is not None:
        for chain, (sequence, digest) in read_book(book).items():
            if site is None or chain == f"site-{site.pk}":
                now = AuditEntry.objects.filter(chain=chain, sequence=sequence).values_list("digest", flat=True).first()
                yield from _unlike(chain, sequence, digest, now, "the sender's book has")
                if (chain, sequence) not in known:
                    yield Fault(chain, sequence, "the signed head that the sender's book knows was removed.")


def _unlike(chain: str, sequence: int, digest: str, now: str | None, who: str) -> Iterator[Fault]:
    """The entry at a place is not the one that somebody saw there."""
    if now is None:
        yield Fault(chain, sequence, f"{who} an entry that is missing: the chain was cut off, or written anew.")
    elif now != digest:
        yield Fault(chain, sequence, f"{who} another entry here: the chain was written anew.")


def read_book(path: Path) -> dict[str, Point]:
    """The heads in the sender's book (``agents.book``), which is only read. OperatorError where it is none."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT chain, sequence, digest FROM heads").fetchall()
    except sqlite3.DatabaseError as error:
        raise OperatorError(
            f"The sender's book {path} cannot be read: {error}.", hint="Give the file that FLEET_SENDER_BOOK names."
        ) from None
    return {chain: (sequence, digest) for chain, sequence, digest in rows}
