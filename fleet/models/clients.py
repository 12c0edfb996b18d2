import uuid
from collections.abc import Callable

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.utils import timezone

from fleet.hardware import Pattern
from fleet.models.sites import Site, host_label
from fleet.querysets import ScopedQuerySet
from fleet.transitions import status_constraint


class Colour(models.TextChoices):
    """A closed palette: every colour reads on light and dark and is told apart by the colour-blind."""

    BLUE = "blue", "Blue"
    ORANGE = "orange", "Orange"
    GREEN = "green", "Green"
    PURPLE = "purple", "Purple"
    RED = "red", "Red"
    TEAL = "teal", "Teal"
    GREY = "grey", "Grey"


class RootCheck(models.TextChoices):
    """When a client compares its root with the hash of its boot plan. No block is ever used unchecked."""

    READ = "read", "Each block when it is read, the rest once the client has booted"
    WHOLE = "whole", "All of it before the client boots (some seconds more)"


class RootKind(models.TextChoices):
    """What a client's root is made of; each has its own script in images/initrd."""

    SYMLINK = "symlink", "Symlinks into the image"
    BIND = "bind", "Bind mounts of the image"
    OVERLAY = "overlay", "Overlay on the image"


class HomeKind(models.TextChoices):
    """What a client's home is made of; images/initrd and agents/hands/overlay.py make it."""

    OVERLAY = "overlay", "Overlay on the template"
    COPY = "copy", "Copy of the template"


ClassCheck = Callable[["ClientClass"], None]
_class_checks: list[ClassCheck] = []


def class_check(check: ClassCheck) -> ClassCheck:
    """Have ``check`` asked about every class that is edited; it raises ValidationError. For apps of which fleet knows nothing."""
    _class_checks.append(check)
    return check


class RootFetch(models.TextChoices):
    """How the image comes to a client; every block is checked against the hash of the boot plan, whichever way it comes."""

    HTTP = "http", "All of it into memory, before the client boots"
    LAZY = "lazy", "Read over NFS when needed, then all of it into memory"
    NFS = "nfs", "Stays on the NFS share, read when needed"


class ClientClass(models.Model):
    """What kind of station a client is: gamer, contest, kiosk. Deduced from its graphics adapter."""

    SITE = "site"

    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="classes")
    slug = models.SlugField(max_length=40)
    name = models.CharField(max_length=80)
    colour = models.CharField(max_length=10, choices=Colour.choices, default=Colour.BLUE)
    root_kind = models.CharField(
        "kind of root",
        max_length=7,
        choices=RootKind.choices,
        default=RootKind.SYMLINK,
        help_text="Symlinks are the fastest, and show plainly what can change. Bind mounts are for programs that do not like "
        "symlinks in place of directories such as /usr. With an overlay everything can be written, packages "
        "included; it is gone at the next boot all the same.",
    )
    root_fetch = models.CharField(
        "way to fetch the root",
        max_length=4,
        choices=RootFetch.choices,
        default=RootFetch.HTTP,
        help_text="In memory, a client needs the server no more and is fast for ever. On the share, it needs little memory, "
        "and the server as long as it runs.",
    )
    root_check = models.CharField("check of the root", max_length=5, choices=RootCheck.choices, default=RootCheck.READ)
    root_percent = models.PositiveSmallIntegerField(
        "root size",
        default=50,
        validators=[MinValueValidator(5), MaxValueValidator(90)],
        help_text="Most memory the root's tmpfs may take, in percent.",
    )
    home_kind = models.CharField(
        "kind of home",
        max_length=7,
        choices=HomeKind.choices,
        default=HomeKind.OVERLAY,
        help_text="With an overlay a cycle takes as long for a large template as for a small one, and it needs no memory for "
        "it. A copy is for programs that do not like an overlay: each cycle copies the whole template into memory. It "
        "counts from the next boot.",
    )
    home_percent = models.PositiveSmallIntegerField(
        "home size",
        default=50,
        validators=[MinValueValidator(5), MaxValueValidator(90)],
        help_text="Most memory the home's tmpfs may take, in percent.",
    )

    objects = ScopedQuerySet["ClientClass"].as_manager()

    class Meta:
        ordering = ["site", "name"]
        verbose_name_plural = "client classes"
        constraints = [
            models.UniqueConstraint(fields=["site", "slug"], name="class_slug_unique_in_site"),
            status_constraint(Colour, "class_colour_declared", "colour"),
            status_constraint(RootKind, "class_root_kind_declared", "root_kind"),
            status_constraint(RootCheck, "class_root_check_declared", "root_check"),
            status_constraint(HomeKind, "class_home_kind_declared", "home_kind"),
            status_constraint(RootFetch, "class_root_fetch_declared", "root_fetch"),
            models.CheckConstraint(
                condition=models.Q(root_check=RootCheck.READ) | models.Q(root_fetch=RootFetch.HTTP),
                name="class_whole_check_needs_the_whole",
                violation_error_message="A root that is read when it is needed is checked when it is read: "
                "choose that check, or fetch all of it before the client boots.",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        if self.root_fetch != RootFetch.HTTP and not settings.NFS_SHARE:
            raise ValidationError(
                {"root_fetch": "This server has no NFS share: set FLEET_NFS_SHARE (docs/deploy.md), or fetch by HTTP."}
            )
        for check in _class_checks:
            check(self)


pci_id = RegexValidator(r"^([0-9a-f]{4}|\*)$", "Four small hex digits as in 1013, or * for any.")


class HardwareRule(models.Model):
    """A pattern of PCI ids that makes a client one of a class. The lowest priority number wins."""

    SITE = "site"

    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="rules")
    client_class = models.ForeignKey(ClientClass, on_delete=models.CASCADE, related_name="rules")
    priority = models.PositiveSmallIntegerField(
        default=100, help_text="Where a client has two adapters, the rule with the lowest number decides."
    )
    vendor = models.CharField(max_length=4, validators=[pci_id])
    device = models.CharField(max_length=4, default="*", validators=[pci_id])
    subvendor = models.CharField("subsystem vendor", max_length=4, default="*", validators=[pci_id])
    subdevice = models.CharField("subsystem device", max_length=4, default="*", validators=[pci_id])
    note = models.CharField(max_length=200, blank=True)

    objects = ScopedQuerySet["HardwareRule"].as_manager()

    class Meta:
        ordering = ["site", "priority", "id"]
        constraints = [
            models.UniqueConstraint(
                fields=["site", "vendor", "device", "subvendor", "subdevice"],
                name="rule_pattern_unique_in_site",
            )
        ]

    def __str__(self) -> str:
        return f"{self.pattern} → {self.client_class}"

    @property
    def pattern(self) -> Pattern:
        return Pattern(self.vendor, self.device, self.subvendor, self.subdevice)

    def clean(self) -> None:
        if self.client_class_id and self.site_id and self.client_class.site_id != self.site_id:
            raise ValidationError({"client_class": "The class belongs to another site."})


class Admission(models.TextChoices):
    """What people want of a client."""

    PENDING = "pending", "Pending"
    IN_SERVICE = "in-service", "In service"
    MAINTENANCE = "maintenance", "Maintenance"
    RETIRED = "retired", "Retired"


class ClientState(models.TextChoices):
    """What a client is, as last seen."""

    OFF = "off", "Off"
    BOOTING = "booting", "Booting"
    READY = "ready", "Ready"
    IN_USE = "in-use", "In use"
    CYCLING = "cycling", "Cycling"
    LOST = "lost", "Lost"


mac_address = RegexValidator(
    r"^([0-9a-f]{2}:){5}[0-9a-f]{2}$", "A MAC address as in 52:54:00:12:34:56, in small letters."
)


def row_of(seat: str) -> str:
    """The row of a seat as people say it: ``A`` of ``A3``; the whole of what ends in no number."""
    return seat.rstrip("0123456789").rstrip(" -./")


class Tag(models.Model):
    """A word that a site puts on clients, to order something of all of them: stage, finals, loud."""

    SITE = "site"

    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="tags")
    name = models.SlugField(max_length=40)

    objects = ScopedQuerySet["Tag"].as_manager()

    class Meta:
        ordering = ["site", "name"]
        constraints = [models.UniqueConstraint(fields=["site", "name"], name="tag_name_unique_in_site")]

    def __str__(self) -> str:
        return self.name


class Client(models.Model):
    """A machine. Its MAC is its name, never a proof of who it is."""

    SITE = "site"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    site = models.ForeignKey(Site, on_delete=models.PROTECT, related_name="clients")
    mac = models.CharField("MAC address", max_length=17, unique=True, validators=[mac_address])
    name = models.CharField(max_length=63, validators=[host_label], help_text="The host name it boots with.")
    seat = models.CharField(max_length=20, blank=True, help_text="Where it stands, as people say it: A3.")
    client_class = models.ForeignKey(
        ClientClass,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="clients",
        verbose_name="class",
    )
    class_pinned = models.BooleanField("pinned", default=False, help_text="Keep this class, whatever the rules deduce.")
    admission = models.CharField(max_length=12, choices=Admission.choices, default=Admission.PENDING)
    tags = models.ManyToManyField(Tag, blank=True, related_name="clients")
    secure_on = models.CharField(
        "SecureOn password",
        max_length=17,
        blank=True,
        validators=[mac_address],
        help_text="Six bytes as in 00:11:22:33:44:55, where its network card wakes for nobody else.",
    )

    state = models.CharField(max_length=10, choices=ClientState.choices, default=ClientState.OFF, editable=False)
    since = models.DateTimeField(default=timezone.now, editable=False)
    last_seen = models.DateTimeField(null=True, editable=False)
    trouble = models.CharField(max_length=500, blank=True, editable=False, help_text="Why it last failed to boot.")

    adapters = models.JSONField(default=list, editable=False)
    memory_kib = models.PositiveBigIntegerField(null=True, editable=False)
    product = models.CharField(max_length=100, blank=True, editable=False)
    serial = models.CharField(max_length=100, blank=True, editable=False)
    network = models.CharField(max_length=18, blank=True, editable=False, help_text="Its IPv4 network: 10.20.0.0/24.")
    hold_reason = models.CharField(max_length=100, blank=True, editable=False, help_text="Why it must be left alone.")
    hold_until = models.DateTimeField(null=True, editable=False)
    twin_at = models.DateTimeField(null=True, editable=False, help_text="When two machines last had its MAC address.")

    objects = ScopedQuerySet["Client"].as_manager()

    class Meta:
        ordering = ["site", "seat", "name"]
        constraints = [
            models.UniqueConstraint(fields=["site", "name"], name="client_name_unique_in_site"),
            status_constraint(Admission, "client_admission_declared", "admission"),
            status_constraint(ClientState, "client_state_declared", "state"),
            models.CheckConstraint(
                condition=models.Q(class_pinned=False) | models.Q(client_class__isnull=False),
                name="client_pinned_to_a_class",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.seat} ({self.name})" if self.seat else self.name

    def clean(self) -> None:
        if self.client_class_id and self.client_class and self.client_class.site_id != self.site_id:
            raise ValidationError({"client_class": "The class belongs to another site."})
        if self.class_pinned and not self.client_class_id:
            raise ValidationError({"client_class": "A pinned client needs a class."})
