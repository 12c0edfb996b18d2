"""What people ask for: build, cancel, retry, release, roll back. Each asks for the right and is audited.

Nothing else writes versions and releases, but for ``images.builds``, which moves what was asked for.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

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
from images import checking, keeping, layers, quota, room, signatures, tasks
from images.builder.change import Change
from images.builder.errors import RecipeError
from images.builder.recipe import Recipe
from images.models import (
    HomeTemplate,
    Image,
    ImageFile,
    ImageHook,
    ImageVersion,
    Release,
    TemplateOrigin,
    VersionStatus,
)

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


def by(actor: Actor | str) -> User | None:
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
    return _queue(ImageVersion(image=image, recipe=recipe), actor, reason, "version.requested")


@transaction.atomic
def retry(version: ImageVersion, actor: Actor, reason: str = "") -> ImageVersion:
    """Queue a new version from the recipe of one that failed or was cancelled, whatever the recipe is by now."""
    require(actor, Right.BUILD, version)
    if version.status not in (VersionStatus.FAILED, VersionStatus.CANCELLED):
        raise WrongState(
            f"{version} cannot be tried again: it is {version.get_status_display().lower()}.",
            hint="Only a failed or cancelled version can.",
        )
    if version.change and version.change.get("by_hand"):
        raise WrongState(
            f"{version} was made in a maintenance shell, and what was done there is gone.",
            hint=f"Open a shell again: manage.py image shell {version.image.slug}.",
        )
    again = ImageVersion(image=version.image, recipe=version.recipe, parent=version.parent, change=version.change)
    return _queue(again, actor, reason, "version.retried", of=str(version))


def may_change(parent: ImageVersion, actor: Actor) -> None:
    """Raises Forbidden or WrongState when ``actor`` may derive nothing from ``parent``."""
    require(actor, Right.BUILD, parent)
    if parent.status != VersionStatus.READY:
        raise WrongState(
            f"Nothing can be derived from {parent}: it is {parent.get_status_display().lower()}.",
            hint="Only from a ready version.",
        )
    keeping.require_files(parent)
    signatures.require(parent)


@transaction.atomic
def request_derived(
    parent: ImageVersion, change: Mapping[str, Any], actor: Actor, reason: str = "", *, keep: bool = False
) -> ImageVersion:
    """Queue a version derived from ``parent`` by ``change`` (``Change.to_dict``); with ``keep`` the recipe learns it, too.

    Raises Forbidden, WrongState when the parent is not ready, and OperatorError naming what cannot be done.
    """
    may_change(parent, actor)
    try:
        wanted = Change.from_dict(Recipe.from_dict(parent.recipe), change)
    except RecipeError as error:
        raise OperatorError(f"{parent} cannot be changed so. {error!s}.", hint="Correct it and try again.") from error
    if keep:
        _learn(parent.image, wanted)
    version = ImageVersion(image=parent.image, recipe=parent.recipe, parent=parent, change=wanted.to_dict())
    return _queue(version, actor, reason, "version.requested", of=str(parent), change=str(wanted))


def _learn(image: Image, change: Change) -> None:
    """Have the recipe give, from now on, what the change gave."""
    packages = [name for name in image.packages.split() if name not in change.remove]
    image.packages = "\n".join([*packages, *(name for name in change.install if name not in packages)])
    image.save(update_fields=["packages"])
    for file in change.files:
        values = {"content": file.content, "mode": f"{file.mode:04o}"}
        ImageFile.objects.update_or_create(image=image, path=file.path, defaults=values)
    if change.script:
        last = ImageHook.objects.filter(image=image).aggregate(last=Max("position"))["last"] or 0
        ImageHook.objects.create(image=image, position=last + 10, script=change.script)


def _queue(version: ImageVersion, actor: Actor, reason: str, action: str, **detail: str) -> ImageVersion:
    """Give the new version its number and send for a worker; one changed by hand is built by whoever changed it."""
    image = version.image
    Image.objects.select_for_update().get(pk=image.pk)  # the lock under which versions are numbered
    for waiting in ImageVersion.objects.filter(image=image, status=VersionStatus.QUEUED):
        if (waiting.recipe, waiting.parent_id, waiting.change) == (version.recipe, version.parent_id, version.change):
            raise WrongState(f"{waiting} is queued already, with the same recipe.", hint="Wait for it, or cancel it.")
    quota.require_room(image)
    version.number = (ImageVersion.objects.filter(image=image).aggregate(last=Max("number"))["last"] or 0) + 1
    version.reason, version.requested_by = reason.strip()[:200], by(actor)
    version.save(force_insert=True)
    audit.record(action, version, site=image.site, actor=actor, reason=version.reason, **detail)
    if not (version.change and version.change["by_hand"]):
        enqueue(tasks.build, version.pk)
    return version


def look_for_upgrades(version: ImageVersion, actor: Actor) -> None:
    """Send for a worker that looks which packages of a ready version have newer ones. It changes nothing, so it is not audited."""
    may_change(version, actor)
    enqueue(tasks.look_for_upgrades, version.pk)


@transaction.atomic
def request_check(version: ImageVersion, actor: Actor) -> None:
    """Send for a worker that boots a ready version in a virtual PC; its findings appear with the version.

    Raises Forbidden, and WrongState for a version that is not there as it was built, or is being checked already.
    """
    may_change(version, actor)
    version.refresh_from_db(fields=["checked"])  # under the lock of may_change
    if checking.is_under_way(version):
        raise WrongState(f"{version} is being checked already.", hint="Wait for its end, or look at its findings.")
    version.checked = checking.asked()
    version.save(update_fields=["checked"])
    audit.record("version.check-requested", version, site=version.image.site, actor=actor)
    enqueue(tasks.check, version.pk)


@transaction.atomic
def cancel_build(version: ImageVersion, actor: Actor, reason: str = "") -> None:
    """Cancel a version that is queued or building; its worker sees it within a second and removes what it made."""
    require(actor, Right.BUILD, version)
    move(version, VersionStatus.CANCELLED, finished_at=timezone.now())
    audit.record("version.cancelled", version, site=version.image.site, actor=actor, reason=reason.strip()[:200])


@transaction.atomic
def release(version: ImageVersion, client_class: ClientClass, actor: Actor, reason: str = "") -> Release:
    """Give ``version`` to the clients of ``client_class``: they boot it from their next boot on."""
    current, new = fitting(version, client_class, actor)
    return give(current, new, actor, reason, "released")


def fitting(version: ImageVersion, client_class: ClientClass, actor: Actor) -> tuple[Release | None, Release]:
    """The class's current release, under its lock, and one of ``version`` that is not saved yet.

    Raises Forbidden, and OperatorError for a version that the class cannot have.
    """
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
    current = current_of(client_class)
    keeping.require_files(version)
    signatures.require(version)
    if current and current.version_id == version.pk:
        raise WrongState(f"{version} is what {client_class} boots already.", hint="There is nothing to do.")
    layers.needed(client_class, version)
    assert version.contents is not None  # the database allows no ready version without
    if current and current.version.image_id == version.image_id and current.home.origin != TemplateOrigin.BUILD:
        home = current.home  # somebody chose it for this class; a new version is no reason to take it away
    else:
        home = HomeTemplate.objects.get(image=version.image, sha256=version.contents.home.sha256)
    return current, Release(client_class=client_class, version=version, home=home)


@transaction.atomic
def roll_back(client_class: ClientClass, actor: Actor, reason: str = "") -> Release:
    """Give the class again what it booted before its current release. Asked again it goes back one further."""
    require(actor, Right.RELEASE, client_class)
    return go_back(client_class, actor, reason)


def go_back(client_class: ClientClass, actor: Actor | str, reason: str) -> Release:
    """The same for whoever was asked already, or for the clock."""
    current = current_of(client_class)
    effective = (current.restores or current) if current else None
    history = Release.objects.filter(client_class=client_class, canary=False)
    earlier = history.filter(pk__lt=effective.pk).order_by("-pk").first() if effective else None
    if earlier is None:
        raise WrongState(f"{client_class} has no earlier release to go back to.", hint="Release a version instead.")
    keeping.require_files(earlier.version)
    signatures.require(earlier.version)
    layers.needed(client_class, earlier.version)
    again = Release(
        client_class=client_class, version=earlier.version, home=earlier.home, restores=earlier.restores or earlier
    )
    again.most_bad = (
        0  # it was good before; what is bad now is not the version's fault, and going back once more helps nobody
    )
    return give(current, again, actor, reason, "rolled-back")


def current_of(client_class: ClientClass) -> Release | None:
    """The current release, under the lock of its class: two releases at once come one after the other."""
    ClientClass.objects.select_for_update().get(pk=client_class.pk)
    releases = Release.objects.select_related("version__image", "restores", "home")
    return releases.filter(client_class=client_class, current=True).first()


def give(current: Release | None, new: Release, actor: Actor | str, reason: str, action: str) -> Release:
    room.require_room(new.client_class, new.home)
    Release.objects.filter(client_class=new.client_class, current=True).update(current=False)
    new.released_by, new.reason = by(actor), reason.strip()[:200]
    new.save(force_insert=True)
    audit.record(
        f"version.{action}",
        new.version,
        site=new.client_class.site,
        actor=actor,
        client_class=new.client_class.slug,
        digest=new.version.digest,
        replaces=str(current.version) if current else "",
        home=new.home.tree_digest,
        reason=new.reason,
    )
    return new
