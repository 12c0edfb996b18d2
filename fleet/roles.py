"""Who may do what at a site. One table, read by the admin, the board, the API and the services."""

from django.db import models


class Role(models.TextChoices):
    VIEWER = "viewer", "Viewer"
    VOLUNTEER = "volunteer", "Volunteer"
    ORGANISER = "organiser", "Organiser"
    SITE_ADMIN = "site-admin", "Site admin"


class Right(models.TextChoices):
    VIEW = "view", "see the site, its clients and its audit log"
    OPERATE = "operate", "cycle, restart and power down clients"
    ENROL = "enrol", "admit, name and seat clients"
    BUILD = "build", "edit recipes and build versions"
    RELEASE = "release", "release a version to a class, or roll it back"
    MANAGE = "manage", "edit the site, its classes, rules and members"


RIGHTS: dict[Role, frozenset[Right]] = {
    Role.VIEWER: frozenset({Right.VIEW}),
    Role.VOLUNTEER: frozenset({Right.VIEW, Right.OPERATE, Right.ENROL, Right.BUILD}),
    Role.ORGANISER: frozenset({Right.VIEW, Right.OPERATE, Right.ENROL, Right.BUILD, Right.RELEASE}),
    Role.SITE_ADMIN: frozenset(Right),
}


def roles_with(right: Right) -> list[Role]:
    """The roles that hold ``right``."""
    return [role for role, rights in RIGHTS.items() if right in rights]
