"""How long builds take, step by step: for the chart over versions, and for what is left of one that runs."""

from collections.abc import Iterable
from dataclasses import dataclass

from django.utils import timezone

from images.models import BuildStep, Image, ImageVersion, VersionStatus

SHOWN = 12  # versions in the chart
COLOURS = 8  # steps that are told apart by colour; the shorter ones share the last


@dataclass(frozen=True)
class Piece:
    """One step in a version's bar; ``x`` and ``width`` in percent of the longest build."""

    name: str
    title: str
    seconds: float
    colour: int
    x: float
    width: float


@dataclass(frozen=True)
class Bar:
    """A version's build: its steps as lanes of one bar, from its first moment to its last."""

    version: ImageVersion
    seconds: float
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Chart:
    """The newest ``SHOWN`` builds that came to an end, oldest first; ``names`` of steps by colour."""

    names: tuple[str, ...]
    bars: tuple[Bar, ...]


def chart(image: Image) -> Chart:
    """The builds of an image's ready versions. A step that ran beside another is counted by its own time."""
    light = image.versions.defer("manifest", "recipe", "failure").select_related("image")
    ready = light.filter(status=VersionStatus.READY, steps__isnull=False).distinct().order_by("-number")[:SHOWN]
    versions = list(ready)[::-1]
    steps: dict[int, list[BuildStep]] = {version.pk: [] for version in versions}
    for step in BuildStep.objects.filter(version__in=versions).defer("output", "command"):
        steps[step.version_id].append(step)
    total: dict[str, float] = {}
    for step in (step for found in steps.values() for step in found):
        total[step.name] = total.get(step.name, 0.0) + (step.seconds or 0.0)
    names = sorted(total, key=lambda name: (-total[name], name))
    colour = {name: min(number, COLOURS - 1) for number, name in enumerate(names)}
    longest = max((_sum(found) for found in steps.values()), default=0.0) or 1.0
    bars = []
    for version in versions:
        pieces, x = [], 0.0
        for step in steps[version.pk]:
            width = 100 * (step.seconds or 0.0) / longest
            seconds = round(step.seconds or 0.0, 1)
            pieces.append(Piece(step.name, step.title, seconds, colour[step.name], round(x, 2), round(width, 2)))
            x += width
        bars.append(Bar(version, round(_sum(steps[version.pk]), 1), tuple(pieces)))
    return Chart(tuple(names[: COLOURS - 1] + (["others"] if len(names) >= COLOURS else [])), tuple(bars))


def _sum(steps: Iterable[BuildStep]) -> float:
    return sum(step.seconds or 0.0 for step in steps)


@dataclass(frozen=True)
class Outlook:
    """How far a build is: percent, and seconds that are left, as ``like`` took them."""

    percent: int
    left_s: int
    like: ImageVersion


def outlook(version: ImageVersion) -> Outlook | None:
    """Judged by the last ready version that was made the same way (built, or derived); None without one, or when none runs.

    Each step weighs what it took then; in the one under way counts what it says of itself, else its time.
    """
    if version.status != VersionStatus.BUILDING:
        return None
    earlier = version.image.versions.filter(status=VersionStatus.READY, number__lt=version.number)
    earlier = earlier.filter(parent__isnull=version.parent_id is None, steps__isnull=False)
    like = earlier.defer("manifest", "recipe").select_related("image").order_by("-number").first()
    if like is None:
        return None
    weight = {step.name: step.seconds or 0.0 for step in like.steps.defer("output", "command")}
    done = 0.0
    for step in version.steps.defer("output", "command"):
        expected = weight.get(step.name, 0.0)
        if step.finished_at:
            done += expected
            continue
        passed = (timezone.now() - step.started_at).total_seconds() / expected if expected else 0.0
        done += expected * min(0.99, step.fraction or passed)
    whole = sum(weight.values())
    if not whole:
        return None
    return Outlook(min(99, int(100 * done / whole)), max(1, round(whole - done)), like)
