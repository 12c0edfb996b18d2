"""What people ask of home templates: take this archive, accept it, give it to a class. Each asks for the right and is audited.

An archive is never used as it came: a worker packs it (images/homebuilds.py), and a person who sees what is in it accepts it.
"""

import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction
from django.utils import timezone

from fleet import audit
from fleet.exceptions import OperatorError, WrongState
from fleet.models import ClientClass
from fleet.queue import enqueue
from fleet.roles import Right
from fleet.transitions import move
from images import homebuilds, keeping, services, tasks
from images.models import HomeTemplate, Image, Release, TemplateOrigin, TemplateStatus

MOST_BYTES = 2 << 30  # of an archive as it comes


def propose(image: Image, name: str, content: Iterable[bytes], actor: services.Actor, reason: str = "") -> HomeTemplate:
    """Take an archive in (``content`` in pieces) and have a worker pack it. Raises Forbidden and OperatorError."""
    services.require(actor, Right.BUILD, image)
    homebuilds.compared_with(image)
    uploads: Path = settings.UPLOADS
    uploads.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = uuid.uuid4()
    archive = uploads / str(key)
    try:
        size = 0
        with archive.open("xb") as file:
            for piece in content:
                size += len(piece)
                if size > MOST_BYTES:
                    raise OperatorError(f"{name} is larger than {MOST_BYTES >> 30} GiB.", hint="Pack less of the home.")
                file.write(piece)
        with transaction.atomic():
            row = _take_in(image, TemplateOrigin.UPLOAD, key, name, services.by(actor), reason)
            audit.record(
                "home.proposed", row, site=image.site, actor=actor, file=row.name, bytes=size, reason=row.reason
            )
            enqueue(tasks.pack_home, row.pk)
    except BaseException:
        archive.unlink(missing_ok=True)
        raise
    return row


def captured(image: Image, key: uuid.UUID, name: str, person: User | None, reason: str, **facts: Any) -> HomeTemplate:
    """Have a worker pack the archive ``key`` that came from a client, as it does an upload. Its right was asked for before."""
    row = _take_in(image, TemplateOrigin.CAPTURE, key, name, person, reason)
    audit.record(
        "home.captured", row, site=image.site, actor=person or "gateway", client=name, reason=row.reason, **facts
    )
    enqueue(tasks.pack_home, row.pk)
    return row


def _take_in(
    image: Image, origin: TemplateOrigin, key: uuid.UUID, name: str, person: User | None, reason: str
) -> HomeTemplate:
    return HomeTemplate.objects.create(
        image=image,
        status=TemplateStatus.PACKING,
        origin=origin,
        archive=key,
        name=name[:100],
        reason=reason.strip()[:200],
        requested_by=person,
    )


@transaction.atomic
def accept(row: HomeTemplate, actor: services.Actor, reason: str = "") -> None:
    """Let a template that was looked at be given to classes."""
    _decide(row, TemplateStatus.ACCEPTED, "home.accepted", actor, reason)


@transaction.atomic
def refuse(row: HomeTemplate, actor: services.Actor, reason: str = "") -> None:
    """Have a template never be used."""
    _decide(row, TemplateStatus.REFUSED, "home.refused", actor, reason)


def _decide(row: HomeTemplate, status: TemplateStatus, action: str, actor: services.Actor, reason: str) -> None:
    services.require(actor, Right.BUILD, row)
    move(row, status, decided_at=timezone.now(), decided_by=services.by(actor))
    audit.record(action, row, site=row.image.site, actor=actor, reason=reason.strip()[:200], digest=row.tree_digest)


@transaction.atomic
def use(row: HomeTemplate, client_class: ClientClass, actor: services.Actor, reason: str = "") -> Release:
    """Give the template to a class: its clients get it at their next cycle or boot."""
    services.require(actor, Right.RELEASE, client_class)
    if row.status != TemplateStatus.ACCEPTED:
        raise WrongState(
            f"{row} cannot be used: it is {row.get_status_display().lower()}.", hint="Only an accepted template can."
        )
    current = services.current_of(client_class)
    keeping.require_template(row)
    if current is None or current.version.image_id != row.image_id:
        raise OperatorError(
            f"{client_class} boots {current.version if current else 'nothing'}, and {row} is a home of {row.image}.",
            hint=f"Release a version of {row.image} to it first.",
        )
    if current.home_id == row.pk:
        raise WrongState(f"{row} is what {client_class} has already.", hint="There is nothing to do.")
    new = Release(client_class=client_class, version=current.version, home=row)
    return services.give(current, new, actor, reason, "home-given")


def now_for(release: Release) -> HomeTemplate:
    """What the home of a client that booted ``release`` is restored to now: of the class's newest release, if the user is the same."""
    if release.is_under_way:
        return release.home
    releases = Release.objects.filter(client_class=release.client_class_id, current=True).select_related(
        "home", "version"
    )
    current = releases.first()
    if current is not None and current.version.image_id == release.version.image_id:
        return current.home
    return release.home
