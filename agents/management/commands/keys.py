from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from agents import rotation
from fleet.exceptions import FleetError
from fleet.signing import KINDS, make_keys
from fleet.slots import Slots

SIGNS = {"command": "sender", "session": "gateway", "image": "worker of builds"}
NEXT = {
    "publish": "Nothing is under way. --stage publish makes the next key and tells of its public half.",
    "switch": "The next key is published. --stage switch has the {who} sign with it.",
    "retire": "The {who} signs with the new key. --stage retire has nobody believe the old one any more.",
}


class Command(BaseCommand):
    help = (
        "Makes the key pairs that sign commands, boot plans and image versions, where they are missing; rotates them."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        commands = parser.add_subparsers(dest="action")
        rotate = commands.add_parser(
            "rotate", help="say how the keys of a kind stand and what comes next; with --stage, do that"
        )
        rotate.add_argument("kind", choices=KINDS)
        rotate.add_argument("--stage", choices=rotation.STAGES)
        rotate.add_argument("--now", action="store_true", help="without waiting for anybody: the key was stolen")
        rotate.add_argument("--private", type=Path, help="the private key in use, where this process is not given it")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["action"] is None:
            for path in make_keys(settings.PUBLIC_KEYS):
                self.stdout.write(f"Made {path}")
            return
        kind, stage = options["kind"], options["stage"]
        try:
            slots = Slots.at(kind, settings.PUBLIC_KEYS, options["private"] or Path(rotation.private_of(kind)))
            left = rotation.advance(slots, stage, now=options["now"]) if stage else []
            for line in left:
                self.stdout.write(f"Left behind: {line}")
            self._tell(slots)
        except FleetError as error:
            raise CommandError(str(error)) from None

    def _tell(self, slots: Slots) -> None:
        """How the keys stand, what is done next, and what that waits for."""
        for slot in ("old", "present", "next"):
            if key := getattr(slots, slot):
                self.stdout.write(f"{slot:>8}  {key}")
        stage = rotation.stage_of(slots)
        self.stdout.write(NEXT[stage].format(who=SIGNS[slots.kind]))
        for line in rotation.hindrances(slots, stage):
            self.stdout.write(f"Not yet: {line}")
