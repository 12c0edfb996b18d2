from django.conf import settings
from django.core.validators import RegexValidator
from django.db import models
from django.utils import timezone

from fleet.querysets import ScopedQuerySet
from fleet.roles import Role
from fleet.transitions import status_constraint


class UnknownHardware(models.TextChoices):
    """What a site does with a client that no hardware rule matches."""

    PENDING = "pending", "Wait until a volunteer admits it"
    DEFAULT = "default", "Boot as the site's default class"


class Site(models.Model):
    """A place with clients: a club room, a school, an event hall."""

    SITE = "pk"

    slug = models.SlugField(unique=True, help_text="Stands in the DHCP file name and in addresses, e.g. clubroom.")
    name = models.CharField(max_length=100)
    unknown_hardware = models.CharField(max_length=10, choices=UnknownHardware.choices, default=UnknownHardware.PENDING)
    default_class = models.ForeignKey(
        "fleet.ClientClass", null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    enrolment_until = models.DateTimeField(
        null=True, editable=False, help_text="Until then clients never seen before are admitted without asking."
    )
    storage_limit = models.PositiveIntegerField(
        "storage of its images",
        null=True,
        blank=True,
        help_text="MiB its images may take in the store before builds are warned of. 0: no limit. Empty: the server's.",
    )

    objects = ScopedQuerySet["Site"].as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [status_constraint(UnknownHardware, "site_unknown_hardware_declared", "unknown_hardware")]

    def __str__(self) -> str:
        return self.name

    @property
    def enrolment_open(self) -> bool:
        """Whether clients never seen before are admitted now; that ends by itself."""
        return self.enrolment_until is not None and self.enrolment_until > timezone.now()


class Membership(models.Model):
    """A person's role at a site."""

    SITE = "site"

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships")
    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=12, choices=Role.choices, default=Role.VIEWER)

    objects = ScopedQuerySet["Membership"].as_manager()

    class Meta:
        ordering = ["site", "user"]
        constraints = [
            models.UniqueConstraint(fields=["user", "site"], name="membership_one_role_per_person_and_site"),
            status_constraint(Role, "membership_role_declared", "role"),
        ]

    def __str__(self) -> str:
        return f"{self.user} at {self.site}"


host_label = RegexValidator(
    r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
    "A host name: small letters, digits and inner hyphens, at most 63 characters.",
)
