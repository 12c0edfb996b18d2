from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError

from fleet.exceptions import OperatorError
from fleet.models import Site
from images import collecting, quota, signatures, storing
from images.builder.chunks import Archive
from images.builder.errors import BuildError
from images.builder.store import Store
from images.models import Image, ImageVersion


class Command(BaseCommand):
    help = "Verifies, collects and measures the store of artefacts; takes versions to another store and back."

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="action", required=True)
        commands.add_parser(
            "verify", help="read everything; names what is damaged, missing or not signed, and whose; exit code 1 then"
        )
        gc = commands.add_parser("gc", help="archive what is to be archived, remove what nobody needs")
        gc.add_argument("--dry-run", action="store_true", help="only say what would be done, with bytes")
        commands.add_parser("usage", help="what the images of each site take")
        export = commands.add_parser("export", help="write a version to a file for a site without a network")
        export.add_argument("version", help="such as gamer-3")
        export.add_argument("file", type=Path, help="a new file")
        export.add_argument(
            "--have",
            action="append",
            default=[],
            metavar="VERSION",
            help="a version that the other side has: what it has is left out; may be given several times",
        )
        bring = commands.add_parser("import", help="take in the version of an exported file")
        bring.add_argument("file", type=Path)
        bring.add_argument("--image", required=True, help="the slug of the image it becomes a version of")
        bring.add_argument("--as", dest="person", required=True, help="the user name of the person who asks for it")

    def handle(self, *args: Any, action: str, **options: Any) -> None:
        try:
            getattr(self, f"_{action}")(Store(settings.STORE), options)
        except (OperatorError, BuildError, OSError) as error:
            raise CommandError(str(error)) from error

    def _say(self, text: str) -> None:
        """Progress, for who waits: not part of the answer."""
        self.stderr.write(text)

    def _verify(self, store: Store, options: dict[str, Any]) -> None:
        shown = -1

        def tell(done: int, total: int) -> None:
            nonlocal shown
            if (percent := 100 * done // max(total, 1)) // 10 > shown:
                shown = percent // 10
                self._say(f"read {percent} % of {quota.mib(total)}")

        found = list(collecting.verify(store, tell))
        strange = list(signatures.faults())
        for line in (*found, *strange):
            self.stdout.write(str(line))
        if strange and not found:
            what = "1 version or layer is" if len(strange) == 1 else f"{len(strange)} versions or layers are"
            raise CommandError(
                f"{what} not signed by a builder this server trusts: no client starts them. Build them again, or vouch for "
                "what is stored: `manage.py image sign`."
            )
        if found:
            what = "1 artefact is" if len(found) == 1 else f"{len(found)} artefacts are"
            raise CommandError(
                f"{what} not as it should be. Release another version to the classes of those named, and build or import "
                "them again."
            )
        self.stdout.write("Everything is there, whole and signed.")

    def _gc(self, store: Store, options: dict[str, Any]) -> None:
        if options["dry_run"]:
            todo = collecting.plan(store)
            for version in todo.archive:
                self.stdout.write(f"archive {version}")
            for artefact in todo.remove:
                self.stdout.write(f"remove {artefact.sha256} {artefact.bytes}")
            young = sum(artefact.bytes for artefact in todo.young)
            self.stdout.write(
                f"{todo.number} files have {quota.mib(todo.files)}; {len(todo.remove)} of {todo.bytes} bytes would be removed, "
                f"{len(todo.young)} of {young} bytes are needed by nothing but younger than {settings.STORE_GRACE} h."
            )
            return
        done = collecting.collect(store, self._say)
        self.stdout.write(
            f"Removed {done.files} files of {done.bytes} bytes; archiving added {done.archived_bytes} bytes, "
            f"dropped chunks gave back {done.chunk_bytes}."
        )

    def _usage(self, store: Store, options: dict[str, Any]) -> None:
        sites: list[Site | None] = [*Site.objects.all(), None]
        for site in sites:
            used = quota.use(Image.objects.filter(site=site))
            limit = quota.limit_of(site) if site else 0
            self.stdout.write(
                f"{site or 'shared by all sites'}: {quota.mib(used.bytes)}"
                + (f" of {quota.mib(limit)}" if limit else "")
            )
            for row in used.versions:
                self.stdout.write(
                    f"  {row.version!s:24} {row.own:>13} own {row.shared:>13} shared  {row.version.get_storage_display()}"
                )
        files = sum(artefact.bytes for artefact in store.artefacts())
        self.stdout.write(
            f"The store has {quota.mib(files)} of files and {quota.mib(Archive(store).bytes())} of chunks."
        )

    def _export(self, store: Store, options: dict[str, Any]) -> None:
        have = [_version(name) for name in options["have"]]
        shipped = storing.export(_version(options["version"]), have, store, options["file"], self._say)
        self.stdout.write(
            f"{options['file']} has {shipped.bytes} bytes, {100 * shipped.ratio:.2f} % of the version's {shipped.whole_bytes}."
        )

    def _import(self, store: Store, options: dict[str, Any]) -> None:
        image = Image.objects.filter(slug=options["image"]).select_related("site").first()
        user = User.objects.filter(username=options["person"]).first()
        if image is None or user is None:
            missing = f"image {options['image']!r}" if image is None else f"user {options['person']!r}"
            raise CommandError(f"There is no {missing}.")
        version = storing.bring(options["file"], image, user, store, self._say)
        self.stdout.write(f"{version} is ready: {version.digest}")


def _version(name: str) -> ImageVersion:
    slug, _, number = name.rpartition("-")
    known = number.isascii() and number.isdecimal() and len(number) < 10
    version = ImageVersion.objects.filter(image__slug=slug, number=int(number) if known else 0).first()
    if version is None:
        raise CommandError(f"There is no version {name!r}. Versions are called such as gamer-3.")
    return version
