"""Driver layers: what some classes of an image need beside it. And what every step of a build is, of a version or of a layer."""

from collections.abc import Mapping, Sequence
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator
from django.db import models
from django.utils import timezone

from fleet.models import ClientClass
from fleet.querysets import ScopedQuerySet
from fleet.transitions import status_constraint
from images.builder import layer as builder
from images.builder.change import Change
from images.builder.errors import RecipeError
from images.builder.layer import LayerManifest
from images.builder.recipe import Recipe, RecipeFile


class Step(models.Model):
    """One step of a build: what ran, what it printed, how it ended."""

    number = models.PositiveSmallIntegerField()
    name = models.SlugField(max_length=30)
    title = models.CharField(max_length=200)
    command = models.TextField(blank=True, help_text="As it can be pasted into a shell.")
    output = models.TextField(blank=True)
    exit_code = models.IntegerField(null=True)
    failed = models.BooleanField(default=False)
    done = models.PositiveIntegerField(default=0, help_text="Packages that are in place.")
    total = models.PositiveIntegerField(default=0)
    bytes_done = models.PositiveBigIntegerField(default=0, help_text="Fetched, or packed.")
    bytes_total = models.PositiveBigIntegerField(default=0)
    started_at = models.DateTimeField(default=timezone.now)
    finished_at = models.DateTimeField(null=True)

    class Meta:
        abstract = True

    @property
    def seconds(self) -> float | None:
        """How long it took; None while it runs."""
        return (self.finished_at - self.started_at).total_seconds() if self.finished_at else None

    @property
    def fraction(self) -> float:
        """How far it says it is, 0 to 1: packages and bytes count the same where it has both."""
        pairs = ((self.done, self.total), (self.bytes_done, self.bytes_total))
        parts = [min(1.0, done / total) for done, total in pairs if total]
        return sum(parts) / len(parts) if parts else 0.0

    @property
    def progress(self) -> str:
        """The same in words: ``34 of 120 packages, 81 of 230 MB``; empty for a step that does not say."""
        packages = f"{self.done} of {self.total} package{'' if self.total == 1 else 's'}" if self.total else ""
        amount = bytes_of(self.bytes_done, self.bytes_total) if self.bytes_total else ""
        return ", ".join(filter(None, (packages, amount)))


def bytes_of(done: int, total: int) -> str:
    """Both in the unit of the total, of 1000 as apt counts: ``81 of 230 MB``, ``0.4 of 1.2 GB``."""
    unit, name = next((one for one in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")) if total >= one[0]), (1, "B"))
    places = 1 if unit > 1 and total < 10 * unit else 0
    return f"{done / unit:.{places}f} of {total / unit:.{places}f} {name}"


class Layer(models.Model):
    """What is installed over an image for the classes that need it: a driver's libraries, in the place of the image's own."""

    SITE = "image__site"
    SHARED = True

    image = models.ForeignKey("images.Image", on_delete=models.CASCADE, related_name="layers")
    slug = models.SlugField(max_length=40)
    name = models.CharField(max_length=80)
    packages = models.TextField(blank=True, help_text="One per line; installed over the finished image.")
    script = models.TextField(
        blank=True,
        help_text="Run by /bin/sh -eu in the tree, after packages and files. It may remove nothing of the image.",
    )
    classes = models.ManyToManyField(
        ClientClass,
        blank=True,
        related_name="layers",
        help_text="Whose clients need it: they boot this image with the layer or, while it is not ready, not at all.",
    )

    objects = ScopedQuerySet["Layer"].as_manager()

    class Meta:
        ordering = ["image", "slug"]
        constraints = [models.UniqueConstraint(fields=["image", "slug"], name="layer_slug_unique_in_image")]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Name what could not be built while it is typed. Its files see to themselves."""
        if not self.packages.split() or not self.image_id:
            return
        try:
            builder.wanted(self.image.recipe(), install=tuple(self.packages.split()))
        except RecipeError as error:
            if error.field == "install":  # anything else is the image's own, and said there
                raise ValidationError({"packages": str(error).removeprefix("install: ")}) from error

    def change(self, recipe: Recipe) -> Change:
        """What makes the layer over a version of ``recipe``. Raises RecipeError naming the field."""
        return builder.wanted(
            recipe,
            install=tuple(self.packages.split()),
            files=tuple(file.entry() for file in self.files.order_by("path")),
            script=self.script.replace("\r\n", "\n").strip(),
        )


class LayerFile(models.Model):
    """A file put into a layer."""

    SITE = "layer__image__site"
    SHARED = True

    layer = models.ForeignKey(Layer, on_delete=models.CASCADE, related_name="files")
    path = models.CharField(max_length=255, help_text="/etc/X11/xorg.conf.d/20-driver.conf")
    mode = models.CharField(
        max_length=4, default="0644", validators=[RegexValidator(r"^[0-7]{3,4}$", "Octal, as in 0644.")]
    )
    content = models.TextField(blank=True)

    objects = ScopedQuerySet["LayerFile"].as_manager()

    class Meta:
        ordering = ["path"]
        constraints = [models.UniqueConstraint(fields=["layer", "path"], name="layer_file_path_unique")]

    def __str__(self) -> str:
        return self.path

    def clean(self) -> None:
        try:
            Recipe("x", "x", files=(self.entry(),))
        except ValueError:
            return  # the mode's own validator has told
        except RecipeError as error:
            raise ValidationError({"path": str(error).removeprefix(f"{error.field}: ")}) from error

    def entry(self) -> RecipeFile:
        """The file as the builder takes it; browsers send text with CRLF, no system wants it."""
        return RecipeFile(self.path, self.content.replace("\r\n", "\n"), int(self.mode, 8))


class LayerStatus(models.TextChoices):
    QUEUED = "queued", "Queued"
    BUILDING = "building", "Building"
    READY = "ready", "Ready"
    FAILED = "failed", "Failed"
    CANCELLED = "cancelled", "Cancelled"


class LayerBuild(models.Model):
    """A layer as built against one version. Of several the one that became ready last is what clients boot.

    queued → building → ready
       │         ├────→ failed      (its worker lost included)
       └─────────┴────→ cancelled
    """

    SITE = "layer__image__site"
    SHARED = True
    TRANSITIONS: Mapping[str, Sequence[str]] = {
        LayerStatus.BUILDING: [LayerStatus.QUEUED],
        LayerStatus.READY: [LayerStatus.BUILDING],
        LayerStatus.FAILED: [LayerStatus.QUEUED, LayerStatus.BUILDING],
        LayerStatus.CANCELLED: [LayerStatus.QUEUED, LayerStatus.BUILDING],
    }

    layer = models.ForeignKey(Layer, on_delete=models.CASCADE, related_name="builds")
    version = models.ForeignKey("images.ImageVersion", on_delete=models.PROTECT, related_name="layers")
    status = models.CharField(max_length=10, choices=LayerStatus.choices, default=LayerStatus.QUEUED, editable=False)
    change = models.JSONField(editable=False, help_text="The layer as it was when the build was asked for.")
    reason = models.CharField(max_length=200, blank=True)
    requested_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    requested_at = models.DateTimeField(default=timezone.now)
    sent_at = models.DateTimeField(default=timezone.now, help_text="When its message last went to the queue.")
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    digest = models.CharField(max_length=64, blank=True)
    signature = models.CharField(max_length=128, blank=True, editable=False, help_text="As of a version.")
    manifest = models.JSONField(null=True)
    failure = models.TextField(blank=True, help_text="What failed, and the command to replay it.")

    objects = ScopedQuerySet["LayerBuild"].as_manager()

    class Meta:
        ordering = ["layer", "-pk"]
        constraints = [
            status_constraint(LayerStatus, "layer_build_status_declared"),
            models.UniqueConstraint(
                fields=["layer", "version"],
                condition=models.Q(status__in=["queued", "building"]),
                name="layer_one_build_at_a_time",
            ),
            models.CheckConstraint(
                condition=models.Q(status="ready", manifest__isnull=False) & ~models.Q(digest="")
                | ~models.Q(status="ready") & models.Q(digest=""),
                name="layer_ready_means_complete",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.layer.slug} for {self.version}"

    @property
    def took_s(self) -> int | None:
        """Seconds the build took; None before its end."""
        if self.started_at is None or self.finished_at is None:
            return None
        return round((self.finished_at - self.started_at).total_seconds())

    @property
    def contents(self) -> LayerManifest | None:
        """What is in a layer that is ready."""
        return LayerManifest.from_dict(self.manifest) if self.manifest else None

    @property
    def changes(self) -> Change:
        """What makes the layer, for people."""
        return Change.from_dict(Recipe.from_dict(self.version.recipe), self.change)

    def plan_words(self) -> str:
        """The layer as a boot plan names it (docs/protocol.md)."""
        contents: dict[str, Any] = self.manifest or {}
        root, plan = contents["root"], contents["plan"]
        words = (
            root["sha256"],
            root["bytes"],
            contents["root_hash"],
            contents["root_blocks"],
            plan["sha256"],
            plan["bytes"],
        )
        return ",".join(map(str, words))


class LayerStep(Step):
    """A step of a layer's build."""

    SITE = "build__layer__image__site"
    SHARED = True

    build = models.ForeignKey(LayerBuild, on_delete=models.CASCADE, related_name="steps")

    objects = ScopedQuerySet["LayerStep"].as_manager()

    class Meta:
        ordering = ["build", "number"]
        constraints = [models.UniqueConstraint(fields=["build", "number"], name="step_number_unique_in_layer")]

    def __str__(self) -> str:
        return f"{self.build} step {self.number}: {self.title}"
