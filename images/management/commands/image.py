"""Builds a version in the foreground, or replays a failed build so that its failing command can be run by hand."""

from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError, CommandParser

from fleet.exceptions import OperatorError
from images import builds, services
from images.builder import director
from images.builder.__main__ import Terminal
from images.builder.errors import BuildError
from images.builder.recipe import Recipe
from images.models import Image, ImageVersion, VersionStatus


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        build = actions.add_parser("build", help="build a new version here and now, as a worker would")
        build.add_argument("image", help="the slug of the image")
        build.add_argument("--as", dest="person", required=True, help="the user name of the person who asks for it")
        build.add_argument("--reason", default="")
        replay = actions.add_parser("replay", help="build a version's recipe again, storing no row; keep its directory")
        replay.add_argument("version", help="such as gamer-3")

    def handle(self, *args: Any, action: str, **options: Any) -> None:
        if action == "build":
            self._build(options["image"], options["person"], options["reason"])
        else:
            self._replay(options["version"])

    def _build(self, slug: str, person: str, reason: str) -> None:
        image, user = Image.objects.filter(slug=slug).first(), User.objects.filter(username=person).first()
        if image is None or user is None:
            raise CommandError(f"There is no image {slug!r}." if image is None else f"There is no user {person!r}.")
        try:
            version = services.request_build(image, user, reason)
        except OperatorError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"Building {version}")
        builds.run(version.pk, self.stdout.write)
        version.refresh_from_db()
        if version.status != VersionStatus.READY:
            raise CommandError(f"{version} is {version.get_status_display().lower()}. {version.failure}")
        self.stdout.write(f"{version} is ready: {version.digest}")

    def _replay(self, name: str) -> None:
        slug, _, number = name.rpartition("-")
        version = ImageVersion.objects.filter(image__slug=slug, number=int(number) if number.isdecimal() else 0).first()
        if version is None:
            raise CommandError(f"There is no version {name!r}. Versions are called such as gamer-3.")
        place = builds.context(keep=True)
        try:
            director.build(Recipe.from_dict(version.recipe), place, Terminal(verbose=True))
        except BuildError as error:
            raise CommandError(f"{error}\nIts directory stays below {place.work} until the next build.") from error
        self.stdout.write(f"{name} builds without a fault now; its directory stays below {place.work}.")
