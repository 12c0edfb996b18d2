"""What a person decides of a file that the site and an upgrade have both changed."""

from django.db import transaction
from django.utils import timezone

from fleet import audit
from fleet.exceptions import OperatorError
from fleet.roles import Right
from fleet.transitions import move
from images import services
from images.builder.merge3 import MARKS
from images.merge_models import FileMerge, MergeStatus
from images.models import ImageVersion


@transaction.atomic
def keep(row: FileMerge, actor: services.Actor) -> None:
    """The site's file stays. Raises Forbidden, and WrongState when it was decided before."""
    services.require(actor, Right.BUILD, row.version)
    _decide(row, MergeStatus.KEPT, actor)
    audit.record("merge.kept", row.version, site=row.version.image.site, actor=actor, path=row.path)


@transaction.atomic
def take(row: FileMerge, content: str, actor: services.Actor) -> ImageVersion:
    """Queue a version derived of the row's with ``content`` at its path; where the recipe puts that file, it learns it, too.

    Raises Forbidden, WrongState (decided before, or a version that cannot be derived from), and OperatorError for a text in which the
    marks of a conflict are left.
    """
    services.require(actor, Right.BUILD, row.version)
    content = content.replace("\r\n", "\n")
    if any(line.startswith(MARKS) for line in content.splitlines()):
        raise OperatorError(
            f"The text for {row.path} has marks of a conflict in it still.",
            hint="Decide each place between <<<<<<< and >>>>>>>, and remove these lines.",
        )
    _decide(row, MergeStatus.TAKEN, actor)
    in_recipe = row.version.image.recipe_files.filter(path=row.path).exists()
    change = {"files": [{"path": row.path, "content": content, "mode": f"{row.mode:04o}"}]}
    return services.request_derived(row.version, change, actor, f"{row.path} after an upgrade"[:200], keep=in_recipe)


def _decide(row: FileMerge, status: MergeStatus, actor: services.Actor) -> None:
    move(row, status, decided_by=services.by(actor), decided_at=timezone.now())
