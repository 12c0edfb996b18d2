"""Builds and changes versions from a terminal: build, shell (a maintenance shell in a version's chroot), replay (of a failed build), sign, check."""

from pathlib import Path
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError, CommandParser

from fleet.exceptions import OperatorError
from images import builds, checking, services, signatures
from images.builder import director, maintenance
from images.builder.__main__ import Terminal
from images.builder.errors import BuildError
from images.builder.recipe import Recipe
from images.builder.scratch import scratch
from images.checker.boot import PATIENCE_S, SETTLE_S
from images.models import Image, ImageVersion, VersionStatus

_SHOWN = 40  # changed files
_SAID = 4  # lines of a finding


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        build = actions.add_parser("build", help="build a new version here and now, as a worker would")
        build.add_argument("image", help="the slug of the image")
        build.add_argument("--as", dest="person", required=True, help="the user name of the person who asks for it")
        build.add_argument("--reason", default="")
        shell = actions.add_parser(
            "shell", help="open a shell in the chroot of an image's version, and make a version of it"
        )
        shell.add_argument(
            "image", help="the slug of the image (its newest ready version) or a version, such as gamer-3"
        )
        shell.add_argument("--as", dest="person", required=True, help="the user name of the person who does it")
        shell.add_argument("--reason", default="")
        shell.add_argument(
            "--keep", choices=["ask", "yes", "no"], default="ask", help="make a version when the shell is left"
        )
        replay = actions.add_parser("replay", help="build a version's recipe again, storing no row; keep its directory")
        replay.add_argument("version", help="such as gamer-3")
        sign = actions.add_parser(
            "sign",
            help="vouch for a ready version that is not signed, once what is stored of it was read and found whole",
        )
        sign.add_argument("version", help="such as gamer-3")
        sign.add_argument("--as", dest="person", required=True, help="the user name of the person who vouches for it")
        sign.add_argument("--reason", default="")
        check = actions.add_parser(
            "check",
            help="boot a version in a virtual PC: what cannot be written, what fails. Exit code 1: something; 2: not checked",
        )
        check.add_argument(
            "image", help="the slug of the image (its newest ready version) or a version, such as gamer-3"
        )
        check.add_argument("--version", type=int, dest="number", help="the number of the version")
        check.add_argument("--seconds", type=int, default=PATIENCE_S, help="how long the boot may take")
        check.add_argument("--settle", type=int, default=SETTLE_S, help="seconds to look on once it is up")

    def handle(self, *args: Any, action: str, **options: Any) -> None:
        if action == "build":
            self._build(options["image"], options["person"], options["reason"])
        elif action == "shell":
            self._shell(options["image"], options["person"], options["reason"], options["keep"])
        elif action == "sign":
            self._sign(_version(options["version"]), _person(options["person"]), options["reason"])
        elif action == "check":
            name, number = options["image"], options["number"]
            version = _version(f"{name}-{number}") if number else _newest(name) or _version(name)
            self._check(version, options["seconds"], options["settle"])
        else:
            self._replay(options["version"])

    def _build(self, slug: str, person: str, reason: str) -> None:
        image = Image.objects.filter(slug=slug).first()
        if image is None:
            raise CommandError(f"There is no image {slug!r}.")
        try:
            version = services.request_build(image, _person(person), reason)
        except OperatorError as error:
            raise CommandError(str(error)) from error
        self._run(version)

    def _shell(self, name: str, person: str, reason: str, keep: str) -> None:
        user, parent = _person(person), _newest(name) or _version(name)
        place = builds.context()
        recipe = Recipe.from_dict(parent.recipe)
        with scratch(place.work) as opened:
            try:
                services.may_change(parent, user)
                self.stdout.write(
                    f"A shell in {parent}, as root. What you change makes a new version; leave it with exit."
                )
                maintenance.open_shell(opened, parent.digest, recipe, place.arguments())
            except (OperatorError, BuildError) as error:
                raise CommandError(str(error)) from error
            changed = maintenance.changed(opened)
            self.stdout.write(f"\n{len(changed)} files differ from {parent}:")
            for path in changed[:_SHOWN]:
                self.stdout.write(f"  {path}")
            if len(changed) > _SHOWN:
                self.stdout.write(f"  … and {len(changed) - _SHOWN} more")
            if keep == "no" or (
                keep == "ask" and input("Make a version of it? [y/N] ").strip().lower() not in ("y", "yes")
            ):
                self.stdout.write("Thrown away.")
                return
            try:
                version = services.request_derived(parent, {"by_hand": True}, user, reason)
            except OperatorError as error:
                raise CommandError(str(error)) from error
            self._run(version, opened)

    def _run(self, version: ImageVersion, place: Path | None = None) -> None:
        self.stdout.write(f"Building {version}")
        builds.run(version.pk, self.stdout.write, place)
        version.refresh_from_db()
        if version.status != VersionStatus.READY:
            raise CommandError(f"{version} is {version.get_status_display().lower()}. {version.failure}")
        self.stdout.write(f"{version} is ready: {version.digest}")

    def _sign(self, version: ImageVersion, user: User, reason: str) -> None:
        try:
            signatures.vouch(version, user, builds.context().store, reason)
        except (OperatorError, BuildError) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{version} is signed: {version.signature.partition(':')[0]}")

    def _check(self, version: ImageVersion, patience_s: int, settle_s: int) -> None:
        """As a worker would. Ends the program with 1 when there are findings."""
        if version.status != VersionStatus.READY:
            raise CommandError(f"{version} is {version.get_status_display().lower()}, not ready.", returncode=2)
        self.stdout.write(f"{version} boots in a virtual PC; that takes some minutes.")
        found = checking.check(version.pk, patience_s, settle_s)
        version.refresh_from_db()
        if found is None:
            why = (version.checked or {}).get("failure") or "it is being checked already, or not kept as files"
            raise CommandError(f"{version} was not checked: {why}", returncode=2)
        if untraced := (version.checked or {}).get("untraced"):
            self.stdout.write(
                f"Its kernel does not note these calls, so they are seen in logs only: {', '.join(untraced)}."
            )
        if not found:
            self.stdout.write("Nothing: all that is written can be written, no unit fails.")
            return
        rows = [("what", "where", "rule"), *((one.kind.value, one.subject, one.rule or "none known") for one in found)]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for row, one in zip(rows, (None, *found), strict=True):
            self.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
            for line in one.detail.splitlines()[:_SAID] if one else []:
                self.stdout.write(f"    {line}")
        raise SystemExit(1)

    def _replay(self, name: str) -> None:
        version = _version(name)
        place = builds.context(keep=True)
        try:
            recipe = Recipe.from_dict(version.recipe)
            if version.parent and version.changes:
                director.derive(version.parent.digest, recipe, version.changes, place, Terminal(verbose=True))
            else:
                director.build(recipe, place, Terminal(verbose=True))
        except BuildError as error:
            raise CommandError(f"{error}\nIts directory stays below {place.work} until the next build.") from error
        self.stdout.write(f"{name} builds without a fault now; its directory stays below {place.work}.")


def _person(name: str) -> User:
    user = User.objects.filter(username=name).first()
    if user is None:
        raise CommandError(f"There is no user {name!r}.")
    return user


def _newest(slug: str) -> ImageVersion | None:
    ready = ImageVersion.objects.filter(image__slug=slug, status=VersionStatus.READY)
    return ready.select_related("image__site").order_by("-number").first()


def _version(name: str) -> ImageVersion:
    slug, _, number = name.rpartition("-")
    versions = ImageVersion.objects.select_related("image__site", "parent")
    version = versions.filter(image__slug=slug, number=int(number) if number.isdecimal() else 0).first()
    if version is None:
        raise CommandError(f"There is no version {name!r}. Versions are called such as gamer-3.")
    return version
