from collections.abc import Mapping, Sequence
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.utils import timezone

from fleet.models import Client, ClientClass, Site
from fleet.querysets import ScopedQuerySet
from fleet.transitions import status_constraint
from images import weighing
from images.builder.change import Change
from images.builder.errors import RecipeError
from images.builder.manifest import Manifest
from images.builder.recipe import Hook, Recipe, RecipeFile
from images.builder.volatile import parse_rules, refuse_rules
from images.finding_models import Finding as Finding
from images.layer_models import Layer as Layer
from images.layer_models import LayerBuild as LayerBuild
from images.layer_models import LayerFile as LayerFile
from images.layer_models import LayerStep as LayerStep
from images.layer_models import Step
from images.merge_models import FileMerge as FileMerge

hex_digest = RegexValidator(r"^[0-9a-f]{64}$", "A SHA-256 digest in hex.")


class Family(models.TextChoices):
    """Of distributions: which tools make the chroot."""

    DEBIAN = "debian", "Debian"
    UBUNTU = "ubuntu", "Ubuntu"
    RPM = "rpm", "Fedora, RHEL and their kin (rpm)"


class Image(models.Model):
    """A recipe: what a version is built from. Editing it changes no version."""

    SITE = "site"
    SHARED = True

    site = models.ForeignKey(
        Site,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="images",
        help_text="Whose it is. Without a site every site may release it, and only superusers change it.",
    )
    slug = models.SlugField(max_length=40, unique=True)
    name = models.CharField(max_length=80)
    family = models.CharField(max_length=10, choices=Family.choices, default=Family.DEBIAN)
    suite = models.CharField(
        max_length=30, default="bookworm", help_text="Debian: bookworm. Ubuntu: noble. Rpm: the release, as 42 or 9."
    )
    components = models.CharField(
        max_length=100,
        default="main",
        help_text="Of the archive: main contrib non-free (Debian), main universe (Ubuntu). Rpm repositories have none.",
    )
    mirror = models.CharField(
        max_length=1000,
        blank=True,
        help_text="Of the archive. Empty: the server's own. Rpm: the addresses of the repositories, a space between "
        "two; $releasever and $basearch are filled in, and their keys are files of the recipe in /etc/pki/rpm-gpg.",
    )
    packages = models.TextField(blank=True, help_text="One per line, beside those every client needs.")
    volatile = models.TextField(
        blank=True,
        help_text="Rules for what changes on a client, one per line: copy /etc · empty /tmp · share /etc/ssl. "
        "Empty: the family's own.",
    )
    user = models.CharField(max_length=32, default="player", help_text="Who is logged in automatically.")
    uid = models.PositiveIntegerField(default=1000, validators=[MinValueValidator(1000), MaxValueValidator(59999)])
    most_minutes = models.PositiveSmallIntegerField(
        "time limit",
        default=120,
        validators=[MinValueValidator(1), MaxValueValidator(1440)],
        help_text="Minutes after which a build is broken off.",
    )
    most_mib = models.PositiveIntegerField(
        "size limit",
        default=16384,
        validators=[MinValueValidator(64)],
        help_text="MiB that the files of the root may have, unpacked.",
    )

    objects = ScopedQuerySet["Image"].as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [status_constraint(Family, "image_family_declared", "family")]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Name what could not be built while it is typed. Its files see to themselves."""
        try:
            recipe = self._recipe()
            refuse_rules(recipe.volatile)
            weighing.refuse(self, recipe.volatile)
        except RecipeError as error:
            field = {"name": "slug"}.get(error.field, error.field)
            raise ValidationError({field: str(error).removeprefix(f"{error.field}: ")}) from error

    def recipe(self) -> Recipe:
        """The whole recipe: this row, its files and its hooks. Raises RecipeError naming the field."""
        files = list(self.recipe_files.order_by("path"))
        return self._recipe(
            files=tuple(file.entry() for file in files if not file.in_home),
            home_files=tuple(file.entry() for file in files if file.in_home),
            hooks=tuple(
                Hook(f"hook-{number}", hook.script.replace("\r\n", "\n"), hook.network)
                for number, hook in enumerate(self.recipe_hooks.order_by("position", "pk"), 1)
            ),
        )

    def _recipe(self, **parts: Any) -> Recipe:
        return Recipe(
            name=self.slug,
            suite=self.suite,
            family=self.family,
            components=tuple(self.components.split()),
            mirror=self.mirror,
            packages=tuple(self.packages.split()),
            volatile=parse_rules(self.volatile),
            user=self.user,
            uid=self.uid,
            **parts,
        )


class ImageFile(models.Model):
    """A file put into the image; a path that begins with ``~/`` goes into the home template."""

    SITE = "image__site"
    SHARED = True

    image = models.ForeignKey(Image, on_delete=models.CASCADE, related_name="recipe_files")
    path = models.CharField(max_length=255, help_text="/etc/motd, or ~/.profile for the home template.")
    mode = models.CharField(
        max_length=4, default="0644", validators=[RegexValidator(r"^[0-7]{3,4}$", "Octal, as in 0644.")]
    )
    content = models.TextField(blank=True)

    objects = ScopedQuerySet["ImageFile"].as_manager()

    class Meta:
        ordering = ["path"]
        constraints = [models.UniqueConstraint(fields=["image", "path"], name="image_file_path_unique")]

    def __str__(self) -> str:
        return self.path

    def clean(self) -> None:
        try:
            file = self.entry()
            where = {"home_files" if self.in_home else "files": [file.to_dict()]}
            Recipe.from_dict({"name": "x", "suite": "x", **where})
        except ValueError:
            return  # the mode's own validator has told
        except RecipeError as error:
            raise ValidationError({"path": str(error).removeprefix(f"{error.field}: ")}) from error

    @property
    def in_home(self) -> bool:
        return self.path.startswith("~/")

    def entry(self) -> RecipeFile:
        """The file as the builder takes it; browsers send text with CRLF, no system wants it."""
        return RecipeFile(self.path.removeprefix("~/"), self.content.replace("\r\n", "\n"), int(self.mode, 8))


class ImageHook(models.Model):
    """A shell script run in the chroot once packages and files are there."""

    SITE = "image__site"
    SHARED = True

    image = models.ForeignKey(Image, on_delete=models.CASCADE, related_name="recipe_hooks")
    position = models.PositiveSmallIntegerField(default=10)
    script = models.TextField(help_text="Run by /bin/sh -eu in the chroot; the output is a step of the build.")
    network = models.BooleanField(
        default=False, help_text="The script fetches something: it gets the server's network."
    )

    objects = ScopedQuerySet["ImageHook"].as_manager()

    class Meta:
        ordering = ["position", "id"]

    def __str__(self) -> str:
        return f"hook {self.position}"


class VersionStatus(models.TextChoices):
    QUEUED = "queued", "Queued"
    BUILDING = "building", "Building"
    READY = "ready", "Ready"
    FAILED = "failed", "Failed"
    CANCELLED = "cancelled", "Cancelled"


class Storage(models.TextChoices):
    """As what the artefacts of a ready version are kept."""

    FILES = "files", "Files"
    CHUNKS = "chunks", "Archived"
    RESTORING = "restoring", "Being restored"
    NOTHING = "nothing", "Forgotten"


class ImageVersion(models.Model):
    """An image as built: it *becomes* ready and then never changes.

        queued → building → ready
           │         ├────→ failed      (its worker lost included)
           └─────────┴────→ cancelled

    READY has a manifest and its digest, and every artefact it names is in the store. The database refuses to change the
    digest, manifest or recipe of a ready version.
    """

    SITE = "image__site"
    SHARED = True
    TRANSITIONS: Mapping[str, Sequence[str]] = {
        VersionStatus.BUILDING: [VersionStatus.QUEUED],
        VersionStatus.READY: [VersionStatus.BUILDING],
        VersionStatus.FAILED: [VersionStatus.QUEUED, VersionStatus.BUILDING],
        VersionStatus.CANCELLED: [VersionStatus.QUEUED, VersionStatus.BUILDING],
    }

    image = models.ForeignKey(Image, on_delete=models.PROTECT, related_name="versions")
    number = models.PositiveIntegerField()
    status = models.CharField(
        max_length=10, choices=VersionStatus.choices, default=VersionStatus.QUEUED, editable=False
    )
    recipe = models.JSONField(editable=False, help_text="The recipe as it was when the build was asked for.")
    parent = models.ForeignKey(
        "self",
        null=True,
        editable=False,
        on_delete=models.PROTECT,
        related_name="derived",
        help_text="Derived from it.",
    )
    change = models.JSONField(null=True, editable=False, help_text="What makes it of its parent.")
    provenance = models.CharField(
        max_length=64,
        blank=True,
        editable=False,
        help_text="What it was built from (images.builder.director.provenance).",
    )
    reason = models.CharField(max_length=200, blank=True)
    requested_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    requested_at = models.DateTimeField(default=timezone.now)
    sent_at = models.DateTimeField(default=timezone.now, help_text="When its message last went to the queue.")
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    digest = models.CharField(max_length=64, blank=True)
    signature = models.CharField(
        max_length=128, blank=True, editable=False, help_text="<key id>:<base64>, of who built it."
    )
    manifest = models.JSONField(null=True)
    failure = models.TextField(blank=True, help_text="What failed, and the command to replay it.")
    storage = models.CharField(max_length=10, choices=Storage.choices, default=Storage.FILES, editable=False)
    chunk_bytes = models.PositiveBigIntegerField(default=0, editable=False, help_text="What archiving it added.")
    upgrades = models.JSONField(
        null=True, editable=False, help_text="Packages with newer versions (images/upgrades.py)."
    )
    checked = models.JSONField(null=True, editable=False, help_text="The last check (images/checking.py).")
    volatile_change = models.JSONField(
        null=True, editable=False, help_text="Volatile files against the version before (images/volatility.py)."
    )

    objects = ScopedQuerySet["ImageVersion"].as_manager()

    class Meta:
        ordering = ["image", "-number"]
        constraints = [
            models.UniqueConstraint(fields=["image", "number"], name="version_number_unique_in_image"),
            models.UniqueConstraint(
                fields=["image"], condition=models.Q(status="building"), name="version_one_build_per_image"
            ),
            status_constraint(VersionStatus, "version_status_declared"),
            status_constraint(Storage, "version_storage_declared", "storage"),
            models.CheckConstraint(
                condition=models.Q(parent__isnull=True, change__isnull=True)
                | models.Q(parent__isnull=False, change__isnull=False),
                name="version_derived_by_a_change",
            ),
            models.CheckConstraint(
                condition=models.Q(status="ready", manifest__isnull=False) & ~models.Q(digest="")
                | ~models.Q(status="ready") & models.Q(digest=""),
                name="version_ready_means_complete",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.image.slug}-{self.number}"

    @property
    def took_s(self) -> int | None:
        """Seconds the build took; None before its end."""
        if self.started_at is None or self.finished_at is None:
            return None
        return round((self.finished_at - self.started_at).total_seconds())

    @property
    def changes(self) -> Change | None:
        """What makes a derived version of its parent."""
        return Change.from_dict(Recipe.from_dict(self.recipe), self.change) if self.change else None

    @property
    def contents(self) -> Manifest | None:
        """The artefacts, packages and sizes of a ready version."""
        return Manifest.from_dict(self.manifest) if self.manifest else None


class BuildStep(Step):
    """A step of a version's build."""

    SITE = "version__image__site"
    SHARED = True

    version = models.ForeignKey(ImageVersion, on_delete=models.CASCADE, related_name="steps")

    objects = ScopedQuerySet["BuildStep"].as_manager()

    class Meta:
        ordering = ["version", "number"]
        constraints = [models.UniqueConstraint(fields=["version", "number"], name="step_number_unique_in_version")]

    def __str__(self) -> str:
        return f"{self.version} step {self.number}: {self.title}"


class TemplateStatus(models.TextChoices):
    PACKING = "packing", "Being packed"
    PROPOSED = "proposed", "Waiting to be looked at"
    ACCEPTED = "accepted", "Accepted"
    REFUSED = "refused", "Refused"
    FAILED = "failed", "Failed"


class TemplateOrigin(models.TextChoices):
    BUILD = "build", "a build"
    UPLOAD = "upload", "an upload"
    CAPTURE = "capture", "a client"


class HomeTemplate(models.Model):
    """What a home directory is restored to: a squashfs in the store, and the digest of the tree in it.

        packing → proposed → accepted
           │          └────→ refused
           └→ failed

    One from a build is accepted at once.
    """

    SITE = "image__site"
    SHARED = True
    TRANSITIONS: Mapping[str, Sequence[str]] = {
        TemplateStatus.PROPOSED: [TemplateStatus.PACKING],
        TemplateStatus.ACCEPTED: [TemplateStatus.PROPOSED],
        TemplateStatus.REFUSED: [TemplateStatus.PROPOSED],
        TemplateStatus.FAILED: [TemplateStatus.PACKING],
    }

    image = models.ForeignKey(Image, on_delete=models.PROTECT, related_name="home_templates")
    status = models.CharField(
        max_length=10, choices=TemplateStatus.choices, default=TemplateStatus.ACCEPTED, editable=False
    )
    origin = models.CharField(
        max_length=10, choices=TemplateOrigin.choices, default=TemplateOrigin.BUILD, editable=False
    )
    name = models.CharField(max_length=100, blank=True, help_text="Of the file that was uploaded, or of the client.")
    sha256 = models.CharField(max_length=64, blank=True, validators=[hex_digest], help_text="Of the squashfs.")
    bytes = models.PositiveBigIntegerField(default=0)
    tree_digest = models.CharField(max_length=64, blank=True, validators=[hex_digest])
    details = models.JSONField(
        default=dict, help_text="Of one that no build made: files, bytes, what may be secrets, the difference."
    )
    failure = models.TextField(blank=True, help_text="Why nothing came of it.")
    reason = models.CharField(max_length=200, blank=True)
    archive = models.UUIDField(null=True, editable=False, help_text="What was uploaded, as long as it is not packed.")
    requested_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    decided_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    decided_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(default=timezone.now)

    objects = ScopedQuerySet["HomeTemplate"].as_manager()

    class Meta:
        ordering = ["image", "-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["image", "sha256"], condition=~models.Q(sha256=""), name="home_template_unique_in_image"
            ),
            status_constraint(TemplateStatus, "home_template_status_declared"),
            status_constraint(TemplateOrigin, "home_template_origin_declared", "origin"),
            models.CheckConstraint(
                condition=~models.Q(status__in=["proposed", "accepted", "refused"]) | ~models.Q(sha256=""),
                name="home_template_packed_is_in_the_store",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.image.slug} home {self.sha256[:12] or self.name}"


class Release(models.Model):
    """A version given to a class of a site. The current one is what its clients boot; the others are its history.

    A canary is given to some of the class's clients, until it ends: promoted (all get it, by a release of its own) or withdrawn.
    """

    SITE = "client_class__site"
    READY_WITHIN_S = 300
    MOST_BAD = 2

    client_class = models.ForeignKey(ClientClass, on_delete=models.CASCADE, related_name="releases")
    version = models.ForeignKey(ImageVersion, on_delete=models.PROTECT, related_name="releases")
    restores = models.ForeignKey(
        "self", null=True, on_delete=models.SET_NULL, related_name="+", help_text="The earlier release it goes back to."
    )
    home = models.ForeignKey(HomeTemplate, on_delete=models.PROTECT, related_name="releases")
    current = models.BooleanField(default=True)
    released_at = models.DateTimeField(default=timezone.now)
    released_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    reason = models.CharField(max_length=200, blank=True)
    canary = models.BooleanField(default=False, help_text="For some clients only, to see how it does.")
    share = models.PositiveSmallIntegerField(
        default=0,
        validators=[MaxValueValidator(100)],
        help_text="Of a canary: percent of the clients, the same at each boot.",
    )
    clients = models.ManyToManyField(
        Client, blank=True, related_name="+", help_text="Of a canary: these clients, beside that share."
    )
    ended_at = models.DateTimeField(null=True, help_text="When a canary ended, or a release rolled back by itself.")
    outcome = models.CharField(max_length=200, blank=True, help_text="How it ended.")
    ready_within_s = models.PositiveIntegerField(
        "ready within",
        default=READY_WITHIN_S,
        validators=[MinValueValidator(10), MaxValueValidator(3600)],
        help_text="Seconds from the boot plan to a client that is ready; later is a bad boot.",
    )
    most_bad = models.PositiveSmallIntegerField(
        "bad clients",
        default=MOST_BAD,
        help_text="So many clients whose last boot was bad, if they are half of those that booted it, end it; 0: never.",
    )

    objects = ScopedQuerySet["Release"].as_manager()

    class Meta:
        ordering = ["client_class", "-released_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["client_class"],
                condition=models.Q(current=True),
                name="release_one_current_per_class",
            ),
            models.UniqueConstraint(
                fields=["client_class"],
                condition=models.Q(canary=True, ended_at__isnull=True),
                name="release_one_canary_per_class",
            ),
            models.CheckConstraint(
                condition=~models.Q(canary=True, current=True), name="release_canary_is_not_current"
            ),
            models.CheckConstraint(condition=models.Q(share__lte=100), name="release_share_is_a_percentage"),
        ]

    def __str__(self) -> str:
        return f"{self.version} for {self.client_class}"

    @property
    def is_under_way(self) -> bool:
        """Whether it is a canary that has not ended."""
        return self.canary and self.ended_at is None
