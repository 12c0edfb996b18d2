"""Builds for ``/metrics``: how many wait and run, since when, and how long those took that came to their end."""

from collections.abc import Iterable

from django.db.models import Count, DurationField, ExpressionWrapper, F, Min, Sum
from django.utils import timezone
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric, SummaryMetricFamily

from fleet.metrics import DATABASE, Asked
from images.models import BuildStep, ImageVersion, VersionStatus

BUCKETS = (10, 30, 60, 120, 300, 600, 1200, 3600)  # seconds
OPEN = (VersionStatus.QUEUED, VersionStatus.BUILDING)


def builds() -> Iterable[Metric]:
    open_ones = GaugeMetricFamily(
        "fleet_builds", "Versions that wait for a worker or are being built.", labels=("status",)
    )
    oldest = GaugeMetricFamily("fleet_oldest_build_seconds", "Age of the oldest of them.", labels=("status",))
    rows = ImageVersion.objects.filter(status__in=OPEN).values_list("status")
    found = {
        status: (number, since) for status, number, since in rows.annotate(Count("pk"), Min("requested_at")).order_by()
    }
    for status in OPEN:
        number, since = found.get(status, (0, None))
        open_ones.add_metric((status.value,), number)
        oldest.add_metric((status.value,), (timezone.now() - since).total_seconds() if since else 0)
    yield from (open_ones, oldest, _durations(), _steps())


def _durations() -> Metric:
    """From the rows, of which there are hundreds, not from the workers, which no monitor reaches."""
    family = HistogramMetricFamily(
        "fleet_build_duration_seconds", "From a worker's start to the version's end.", labels=("image", "status")
    )
    ended = ImageVersion.objects.exclude(status__in=OPEN).exclude(started_at=None)
    took: dict[tuple[str, str], list[float]] = {}
    for image, status, began, end in ended.values_list("image__slug", "status", "started_at", "finished_at"):
        if began and end:
            took.setdefault((image, status), []).append((end - began).total_seconds())
    for labels, seconds in took.items():
        counts = [(str(float(limit)), sum(one <= limit for one in seconds)) for limit in BUCKETS]
        family.add_metric(labels, [*counts, ("+Inf", len(seconds))], sum(seconds))
    return family


def _steps() -> Metric:
    """What of a build takes how long: by step, of all images. Those that failed have no end, or an exit code."""
    family = SummaryMetricFamily(
        "fleet_build_step_seconds", "Steps of builds that came to their end.", labels=("step",)
    )
    took = ExpressionWrapper(F("finished_at") - F("started_at"), output_field=DurationField())
    ended = BuildStep.objects.exclude(finished_at=None).values_list("name")
    for name, number, total in ended.annotate(number=Count("pk"), total=Sum(took)).order_by():
        family.add_metric((name,), number, total.total_seconds())
    return family


DATABASE.register(Asked(builds))
