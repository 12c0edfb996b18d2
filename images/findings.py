"""Findings: noted once however often they are met, and decided by a person, in one click."""

from __future__ import annotations  # services.Actor: the check of a version, which services asks for, notes findings

from collections.abc import Iterable
from dataclasses import dataclass

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from fleet import audit
from fleet.exceptions import OperatorError
from fleet.models import Client
from fleet.roles import Right
from fleet.transitions import move
from images import services
from images.builder.families import FAMILIES
from images.finding_models import Finding, FindingKind, FindingSource, FindingStatus
from images.models import Image, ImageVersion

MOST_OPEN = 200  # of one version: more than a person looks through
_PATH = 400  # characters of a subject or a rule


@dataclass(frozen=True)
class Found:
    """What somebody met: a path or unit, the rule that would cure it, and what was said."""

    kind: FindingKind
    subject: str
    rule: str = ""
    detail: str = ""
    bytes: int = 0


@transaction.atomic
def note(version: ImageVersion, source: FindingSource, found: Iterable[Found], client: Client | None = None) -> int:
    """Write down what was found, by ``client`` if it was one; how many findings are new. Those beyond MOST_OPEN are left out."""
    ImageVersion.objects.select_for_update().get(pk=version.pk)  # two PCs that tell of the same path at once
    known = {(row.kind, row.subject): row for row in version.findings.filter(source=source)}
    room = MOST_OPEN - version.findings.filter(status=FindingStatus.OPEN).count()
    new, now = 0, timezone.now()
    for one in found:
        row = known.get((one.kind, one.subject))
        if row is None:
            if len(one.subject) > _PATH or len(one.rule) > _PATH or new >= room:
                continue
            row = Finding.objects.create(
                version=version,
                source=source,
                kind=one.kind,
                subject=one.subject,
                rule=one.rule,
                detail=one.detail[:4000],
                bytes=one.bytes,
            )
            known[one.kind, one.subject] = row
            new += 1
        else:
            row.last_at, row.bytes = now, max(row.bytes, one.bytes)
            row.save(update_fields=["last_at", "bytes"])
        if client is not None:
            row.clients.add(client)
    return new


@transaction.atomic
def accept(finding: Finding, actor: services.Actor) -> Image:
    """Put the finding's rule into its image's recipe, for the builds to come.

    Raises Forbidden, WrongState when it was decided before, and OperatorError for one without a rule, or with one that contradicts
    the recipe or copies too much.
    """
    image = Image.objects.select_for_update().get(pk=finding.version.image_id)
    services.require(actor, Right.BUILD, image)
    if not finding.rule:
        raise OperatorError(
            f"No rule is known that would cure {finding.subject}.",
            hint="Look at what was said, change the recipe by hand, and dismiss this.",
        )
    # Without rules of its own an image has those of its family: with one more it still has to have them.
    own = image.volatile.strip() or "\n".join(map(str, FAMILIES[image.family].volatile))
    if finding.rule not in own.splitlines():
        image.volatile = f"{own}\n{finding.rule}"
        try:
            image.clean()
        except ValidationError as error:
            raise OperatorError(
                f"{finding.rule!r} cannot be added to the recipe: {' '.join(error.messages)}",
                hint="Change the volatile rules of the image by hand.",
            ) from error
        image.save(update_fields=["volatile"])
    _decide(finding, FindingStatus.ACCEPTED, actor)
    for other in Finding.objects.filter(version__image=image, rule=finding.rule, status=FindingStatus.OPEN):
        _decide(other, FindingStatus.ACCEPTED, actor)
    audit.record(
        "finding.accepted", image, site=image.site, actor=actor, rule=finding.rule, version=str(finding.version)
    )
    return image


@transaction.atomic
def dismiss(finding: Finding, actor: services.Actor) -> None:
    """It is no matter: nobody is told of it again. Raises Forbidden, and WrongState when it was decided before."""
    image = finding.version.image
    services.require(actor, Right.BUILD, image)
    _decide(finding, FindingStatus.DISMISSED, actor)
    audit.record(
        "finding.dismissed", image, site=image.site, actor=actor, what=finding.subject, version=str(finding.version)
    )


def _decide(finding: Finding, status: FindingStatus, actor: services.Actor) -> None:
    move(finding, status, decided_by=services.by(actor), decided_at=timezone.now())
