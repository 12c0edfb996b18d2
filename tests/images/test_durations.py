"""What builds took, as a chart; and how far one is that runs, by the one before."""

from datetime import datetime, timedelta

import pytest
from django.utils import timezone

from images import durations
from images.models import BuildStep, ImageVersion, VersionStatus
from tests.images.versions import make_image, make_version
from tests.world import World

BEGAN = datetime(2026, 5, 1, 12, tzinfo=timezone.get_default_timezone())


def took(version: ImageVersion, **seconds: float) -> ImageVersion:
    """Its steps, one after the other."""
    at = BEGAN
    for number, (name, took_s) in enumerate(seconds.items(), 1):
        end = at + timedelta(seconds=took_s)
        BuildStep.objects.create(version=version, number=number, name=name, title=name, started_at=at, finished_at=end)
        at = end
    return version


def test_each_ready_version_has_a_bar_of_its_steps_and_a_step_the_same_colour_in_all(world: World) -> None:
    image = make_image(world.clubroom)
    slow, quick = took(make_version(image), bootstrap=30, root=10), took(make_version(image), open=2, root=8)
    took(make_version(image, VersionStatus.FAILED), bootstrap=99)
    took(make_version(make_image(world.clubroom, "other")), bootstrap=500)
    chart = durations.chart(image)
    assert chart.names == ("bootstrap", "root", "open")
    assert [(bar.version, bar.seconds) for bar in chart.bars] == [(slow, 40.0), (quick, 10.0)]
    assert [(piece.name, piece.colour, piece.x, piece.width) for bar in chart.bars for piece in bar.pieces] == [
        ("bootstrap", 0, 0, 75),
        ("root", 1, 75, 25),
        ("open", 2, 0, 5),
        ("root", 1, 5, 20),
    ]


def test_more_steps_than_colours_share_the_last_and_more_versions_than_fit_are_left_out(world: World) -> None:
    image = make_image(world.clubroom)
    for _ in range(durations.SHOWN + 2):
        took(make_version(image), **{f"hook-{number}": 20 - number for number in range(12)})
    chart = durations.chart(image)
    assert chart.names == (*(f"hook-{number}" for number in range(7)), "others")
    assert [bar.version.number for bar in chart.bars] == list(range(3, durations.SHOWN + 3))
    assert {piece.colour for piece in chart.bars[0].pieces} == set(range(8))


def test_an_image_without_builds_has_no_bars(world: World) -> None:
    image = make_image(world.clubroom)
    make_version(image)  # imported: it has no steps
    assert durations.chart(image) == durations.Chart((), ())


def test_how_far_a_build_is_is_judged_by_the_last_one_of_its_kind(world: World) -> None:
    image = make_image(world.clubroom)
    full = took(make_version(image), bootstrap=60, root=40)
    took(make_version(image, parent=full, change={"install": ["tmux"], "by_hand": False}), open=1, root=1)
    running = make_version(image, VersionStatus.BUILDING)
    assert durations.outlook(running) == durations.Outlook(0, 100, full)
    step = BuildStep.objects.create(version=running, number=1, name="bootstrap", title="x", done=1, total=2)
    assert durations.outlook(running) == durations.Outlook(30, 70, full)
    step.bytes_done, step.bytes_total = 75, 100
    step.save()
    assert durations.outlook(running) == durations.Outlook(37, 62, full), "bytes count as packages do"
    step.finished_at = timezone.now()
    step.save()
    assert durations.outlook(running) == durations.Outlook(60, 40, full)
    BuildStep.objects.create(
        version=running, number=2, name="root", title="x", started_at=timezone.now() - timedelta(hours=1)
    )
    assert durations.outlook(running) == durations.Outlook(99, 1, full), "longer than the last time, and not at its end"


@pytest.mark.parametrize(
    ("counts", "words", "fraction"),
    [
        ((0, 0, 0, 0), "", 0.0),
        ((34, 120, 0, 0), "34 of 120 packages", 34 / 120),
        ((0, 1, 0, 0), "0 of 1 package", 0.0),
        ((34, 120, 81_400_000, 230_000_000), "34 of 120 packages, 81 of 230 MB", (34 / 120 + 81.4 / 230) / 2),
        ((0, 0, 360_000_000, 1_200_000_000), "0.4 of 1.2 GB", 0.36 / 1.2),
        ((0, 0, 0, 45_000), "0 of 45 kB", 0.0),
        ((0, 0, 999, 999), "999 of 999 B", 1.0),
        ((7, 5, 9, 8), "7 of 5 packages, 9 of 8 B", 1.0),
    ],
)
def test_a_step_says_how_far_it_is_in_packages_and_bytes(
    counts: tuple[int, int, int, int], words: str, fraction: float
) -> None:
    done, total, bytes_done, bytes_total = counts
    step = BuildStep(done=done, total=total, bytes_done=bytes_done, bytes_total=bytes_total)
    assert step.progress == words
    assert step.fraction == pytest.approx(fraction)


def test_the_first_build_and_one_that_does_not_run_have_no_outlook(world: World) -> None:
    image = make_image(world.clubroom)
    assert durations.outlook(make_version(image, VersionStatus.BUILDING)) is None
    other = make_image(world.clubroom, "other")
    took(make_version(other), bootstrap=60)
    assert durations.outlook(make_version(other, VersionStatus.QUEUED)) is None
