"""What people ask for: build, cancel, retry, release, roll back. Each asks for the right and is audited.

Nothing else writes versions and releases, but for ``images.builds``, which moves what was asked for.
"""

from typing import TypeVar

from django.contrib.auth.models import AnonymousUser, User
from django.db import models, transaction
from django.db.models import Max
from django.utils import timezone

from fleet import audit
from fleet.exceptions import Forbidden, OperatorError, WrongState
from fleet.models import ClientClass
from fleet.querysets import ScopedQuerySet, site_of
from fleet.queue import enqueue
from fleet.roles import Right
from fleet.transitions import move
from images import keeping, quota, tasks
from images.builder.errors import RecipeError
from images.models import HomeTemplate, Image, ImageVersion, Release, VersionStatus

Actor = User | AnonymousUser
M = TypeVar("M", bound=models.Model)


def may(actor: Actor, right: Right, row: models.Model) -> bool:
    """True if ``actor`` holds ``right`` at the site of ``row`` (a shared image is changed by superusers alone)."""
    rows = type(row)._default_manager.filter(pk=row.pk)
    assert isinstance(rows, ScopedQuerySet)
    return rows.visible_to(actor, right).exists()


def require(actor: Actor, right: Right, row: models.Model) -> None:
    """Refuse ``actor`` without ``right`` at the site of ``row``. Raises Forbidden."""
    if not may(actor, right, row):
        raise Forbidden(
            f"You may not {right.label.split(',')[0]}: {row}.",
            hint="Ask somebody with a higher role at its site.",
            site=site_of(row),
        )


def _by(actor: Actor) -> User | None:
    return actor if isinstance(actor, User) else None


@transaction.atomic
def request_build(image: Image, actor: Actor, reason: str = "") -> ImageVersion:
    """Queue a new version of ``image`` from its recipe as it is now.

    Raises Forbidden, OperatorError naming the field of a recipe that cannot be built, and WrongState when the same
    recipe waits already.
    """
    require(actor, Right.BUILD, image)
    try:
        recipe = image.recipe().to_dict()
    except RecipeError as error:
        raise OperatorError(
            f"The recipe of {image} cannot be built. {error!s}.", hint=f"Correct its {error.field} and build again."
        ) from error
    return _queue(image, recipe, actor, reason, "version.requested")


@transaction.atomic
def retry(version: ImageVersion, actor: Actor, reason: str = "") -> ImageVersion:
    """Queue a new version from the recipe of one that failed or was cancelled, whatever the recipe is by now."""
    require(actor, Right.BUILD, version)
    if version.status not in (VersionStatus.FAILED, VersionStatus.CANCELLED):
        raise WrongState(
            f"{version} cannot be tried again: it is {version.get_status_display().lower()}.",
            hint="Only a failed or cancelled version can.",
        )
    return _queue(version.image, version.recipe, actor, reason, "version.retried", of=str(version))


def _queue(
    image: Image, recipe: dict[str, object], actor: Actor, reason: str, action: str, **detail: str
) -> ImageVersion:
    Image.objects.select_for_update().get(pk=image.pk)  # the lock under which versions are numbered
    for waiting in ImageVersion.objects.filter(image=image, status=VersionStatus.QUEUED):
        if waiting.recipe == recipe:
            raise WrongState(f"{waiting} is queued already, with the same recipe.", hint="Wait for it, or cancel it.")
    quota.require_room(image)
    last = ImageVersion.objects.filter(image=image).aggregate(last=Max("number"))["last"] or 0
    version = ImageVersion.objects.create(
        image=image, number=last + 1, recipe=recipe, reason=reason.strip()[:200], requested_by=_by(actor)
    )
    audit.record(action, version, site=image.site, actor=actor, reason=version.reason, **detail)
    enqueue(tasks.build, version.pk)
    return version


@transaction.atomic
def cancel_build(version: ImageVersion, actor: Actor, reason: str = "") -> None:
    """Cancel a version that is queued or building; its worker sees it within a second and removes what it made."""
    require(actor, Right.BUILD, version)
    move(version, VersionStatus.CANCELLED, finished_at=timezone.now())
    audit.record("version.cancelled", version, site=version.image.site, actor=actor, reason=reason.strip()[:200])


@transaction.atomic
def release(version: ImageVersion, client_class: ClientClass, actor: Actor, reason: str = "") -> Release:
    """Give ``version`` to the clients of ``client_class``: they boot it from their next boot on."""
    require(actor, Right.RELEASE, client_class)
    if version.image.site_id not in (None, client_class.site_id):
        raise OperatorError(
            f"{version} belongs to another site than the class {client_class}.",
            hint="Build the image at this site, or let a superuser make it a shared one.",
        )
    if version.status != VersionStatus.READY:
        raise WrongState(
            f"{version} cannot be released: it is {version.get_status_display().lower()}.",
            hint="Only a ready version can.",
        )
    current = _current(client_class)
    keeping.require_files(version)
    if current and current.version_id == version.pk:
        raise WrongState(f"{version} is what {client_class} boots already.", hint="There is nothing to do.")
    assert version.contents is not None  # the database allows no ready version without
    home = HomeTemplate.objects.get(image=version.image, sha256=version.contents.home.sha256)
    return _release(current, Release(client_class=client_class, version=version, home=home), actor, reason, "released")


@transaction.atomic
def roll_back(client_class: ClientClass, actor: Actor, reason: str = "") -> Release:
    """Give the class again what it booted before its current release. Asked again it goes back one further."""
    require(actor, Right.RELEASE, client_class)
    current = _current(client_class)
    effective = (current.restores or current) if current else None
    earlier = (
        Release.objects.filter(client_class=client_class, pk__lt=effective.pk).order_by("-pk").first()
        if effective
        else None
    )
    if earlier is None:
        raise WrongState(f"{client_class} has no earlier release to go back to.", hint="Release a version instead.")
    keeping.require_files(earlier.version)
    again = Release(
        client_class=client_class, version=earlier.version, home=earlier.home, restores=earlier.restores or earlier
    )
    return _release(current, again, actor, reason, "rolled-back")


def _current(client_class: ClientClass) -> Release | None:
    """The current release, under the lock of its class: two releases at once come one after the other."""
    ClientClass.objects.select_for_update().get(pk=client_class.pk)
    releases = Release.objects.select_related("version__image", "restores")
    return releases.filter(client_class=client_class, current=True).first()


def _release(current: Release | None, new: Release, actor: Actor, reason: str, action: str) -> Release:
    Release.objects.filter(client_class=new.client_class, current=True).update(current=False)
    new.released_by, new.reason = _by(actor), reason.strip()[:200]
    new.save(force_insert=True)
    audit.record(
        f"version.{action}",
        new.version,
        site=new.client_class.site,
        actor=actor,
        client_class=new.client_class.slug,
        digest=new.version.digest,
        replaces=str(current.version) if current else "",
        reason=new.reason,
    )
    return new
