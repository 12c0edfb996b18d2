"""Site scoping: the one method that decides which rows a person sees. Nothing when in doubt."""

from typing import TYPE_CHECKING, Self, TypeVar

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser, User
from django.core.exceptions import ImproperlyConfigured
from django.db import models
from django.db.models import Q

from fleet.roles import Right, roles_with

if TYPE_CHECKING:
    from fleet.models import Site

M = TypeVar("M", bound=models.Model, covariant=True)
Person = AbstractBaseUser | AnonymousUser


class ScopedQuerySet(models.QuerySet[M]):
    """A queryset of rows that belong to a site.

    The model says by which lookup it reaches its site: ``SITE = "client__site"`` (``"pk"`` for the site itself). A model
    whose rows may belong to no site sets ``SHARED = True``: such rows are seen, never changed, by members of any site.
    """

    def visible_to(self, person: Person, right: Right = Right.VIEW) -> Self:
        """The rows for which ``person`` holds ``right``; all for a superuser, none for strangers."""
        if not isinstance(person, User) or not person.is_active:
            return self.none()
        if person.is_superuser:
            return self.all()
        path = getattr(self.model, "SITE", None)
        if not path:
            raise ImproperlyConfigured(
                f"{self.model.__name__} does not say how it reaches its site: set SITE on the model."
            )
        from fleet.models import Membership

        sites = Membership.objects.filter(user=person, role__in=roles_with(right)).values("site")
        mine = Q(**{f"{path}__in": sites})
        if getattr(self.model, "SHARED", False) and right == Right.VIEW and sites.exists():
            mine |= Q(**{f"{path}__isnull": True})
        return self.filter(mine)


def site_of(row: models.Model) -> "Site | None":
    """The site that ``row`` belongs to by its model's ``SITE``; None for what belongs to all or to none."""
    found: object = row
    for name in (getattr(type(row), "SITE", "") or "").split("__"):
        if name and name != "pk" and found is not None:
            found = getattr(found, name)
    from fleet.models import Site

    return found if isinstance(found, Site) else None
