"""What images take of the store, and what a site may have of it. Read from rows alone: the web process need not see the store."""

from dataclasses import dataclass, field

from django.conf import settings
from django.db.models import QuerySet

from fleet.exceptions import OperatorError
from fleet.models import Site
from images.keeping import artefacts_in
from images.layer_models import LayerBuild, LayerStatus
from images.models import HomeTemplate, Image, ImageVersion, Storage, VersionStatus

MIB = 1 << 20


@dataclass
class VersionUse:
    """Bytes a version takes: ``own`` if only it has them, ``shared`` if another version has them, too."""

    version: ImageVersion
    own: int = 0
    shared: int = 0

    @property
    def bytes(self) -> int:
        return self.own + self.shared


@dataclass
class Use:
    """Bytes of some images together: what versions share counts once."""

    bytes: int = 0
    versions: list[VersionUse] = field(default_factory=list)


def use(images: QuerySet[Image]) -> Use:
    """What the versions and home templates of ``images`` take; versions newest first, the forgotten left out."""
    ready = ImageVersion.objects.filter(image__in=images, status=VersionStatus.READY).exclude(storage=Storage.NOTHING)
    fields = ("image__slug", "image__name", "number", "manifest", "storage", "chunk_bytes", "finished_at", "status")
    owners: dict[str, list[VersionUse]] = {}
    sizes: dict[str, int] = {}
    found = Use()
    for version in ready.select_related("image").only(*fields).order_by("image", "-number").iterator(chunk_size=50):
        row = VersionUse(version)
        found.versions.append(row)
        if version.storage == Storage.CHUNKS:
            row.own = version.chunk_bytes
            found.bytes += row.own
            continue
        for sha256, size in dict(artefacts_in(version.manifest)).items():
            owners.setdefault(sha256, []).append(row)
            sizes[sha256] = size
        version.manifest = None  # a hundred of them are many bytes
    for sha256, rows in owners.items():
        for row in rows:
            if len(rows) == 1:
                row.own += sizes[sha256]
            else:
                row.shared += sizes[sha256]
    templates = HomeTemplate.objects.filter(image__in=images).exclude(sha256="").values_list("sha256", "bytes")
    layers = LayerBuild.objects.filter(layer__image__in=images, status=LayerStatus.READY).values_list(
        "manifest", flat=True
    )
    over = {sha256: size for manifest in layers for sha256, size in artefacts_in(manifest)}
    found.bytes += sum({**over, **dict(templates), **sizes}.values())
    return found


@dataclass(frozen=True)
class Outlook:
    """What a site would have after one more version of an image, in bytes; ``limit`` and ``hard`` are 0 where there is none."""

    site: Site | None
    used: int
    estimate: int
    limit: int
    hard: int

    @property
    def after(self) -> int:
        return self.used + self.estimate

    @property
    def warning(self) -> str:
        """What to tell before a build that would pass the limit; nothing when it would not."""
        if not self.limit or self.after <= self.limit:
            return ""
        return f"{self._figures()} Forget or archive old versions soon: beyond {mib(self.hard)} no build starts."

    def refuse(self) -> None:
        """Raises OperatorError for a build that would pass the hard limit."""
        if self.hard and self.after > self.hard:
            raise OperatorError(
                f"No room for another version. {self._figures()}",
                hint=f"Forget or archive old versions until {mib(self.after - self.hard)} are free, or have the limit raised.",
            )

    def _figures(self) -> str:
        return (
            f"The images of {self.site} take {mib(self.used)}, another version about {mib(self.estimate)}; "
            f"the limit is {mib(self.limit)}."
        )


def mib(bytes_: int) -> str:
    """Bytes for people, never less than they are."""
    return f"{-(-bytes_ // MIB)} MiB"


def limit_of(site: Site) -> int:
    """Bytes the images of ``site`` may take; 0: no limit."""
    own = site.storage_limit
    return (settings.SITE_STORAGE if own is None else own) * MIB


def outlook(image: Image) -> Outlook:
    """What another version of ``image`` would come to: about as much as its last took. A shared image has no limit."""
    site = image.site
    limit = limit_of(site) if site else 0
    if site is None or not limit:
        return Outlook(site, 0, 0, 0, 0)
    last = ImageVersion.objects.filter(image=image, status=VersionStatus.READY).order_by("-number").first()
    estimate = sum(dict(artefacts_in(last.manifest)).values()) if last else 0
    return Outlook(
        site, use(Image.objects.filter(site=site)).bytes, estimate, limit, limit * settings.STORAGE_HARD // 100
    )


def require_room(image: Image) -> None:
    """Refuse a build that would take its site beyond the hard limit. Raises OperatorError with the figures."""
    outlook(image).refuse()
