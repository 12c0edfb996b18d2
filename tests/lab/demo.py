"""``make demo``: a server, an image, two virtual PCs on a virtual LAN, and a board that shows them ready to be cycled.

Everything is kept below ``var/`` and used again at the next start. Ctrl-C ends all of it.
"""

import argparse
import hashlib
import os
import secrets
import select
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal, NoReturn

from fleet.box import BASE_DIR, box_environment
from fleet.management.commands.up import prepare
from fleet.processes import Processes, printer, read_procfile
from tests.lab.lab import USER_SERVER, Lab
from tests.lab.lan import SERVER
from tests.lab.process import LabError

if TYPE_CHECKING:
    from images.models import ImageVersion

BUILD_LIMIT_S, BOOT_LIMIT_S = 900, 300
LOGIN = "demo"
STATIONS = {"A1": ("station-a1", "cirrus"), "B1": ("station-b1", "ati")}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end as soon as both PCs are on the board (for tests)")
    parser.add_argument("--data", type=Path, default=BASE_DIR / "var")
    parser.add_argument("--verbose", action="store_true", help="show what every process prints")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, _interrupt)  # also where a script started it in the background, deaf to Ctrl-C
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return run(options.data.resolve(), once=options.once, verbose=options.verbose)
    except KeyboardInterrupt:
        print("\nEnded; nothing is left running. `make demo` starts it again from what was built.")
        return 0
    except LabError as error:
        print(f"\nThe demo cannot go on: {error}", file=sys.stderr)
        return 1


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def run(data: Path, *, once: bool, verbose: bool) -> int:
    begun = time.monotonic()
    network: Literal["bridge", "user"] = "bridge" if os.geteuid() == 0 else "user"
    env = box_environment(data)
    env["FLEET_GATEWAY_URL"] = f"http://{SERVER if network == 'bridge' else USER_SERVER}:{env['GATEWAY_PORT']}"
    env["FLEET_WAKE_BROADCAST"] = ""  # the gateway stands outside the virtual LAN: there, PCs wake each other
    os.environ.update(env)
    say = Progress(begun)
    say("Preparing the database and the keys")
    prepare(env)
    commands = read_procfile(BASE_DIR / "Procfile", env)
    processes = Processes(commands, env, printer(list(commands), quiet=not verbose))
    say(f"Starting {', '.join(commands)}")
    processes.start()
    try:
        import django

        django.setup()
        password = people_and_site(data)
        version = built_version(processes, say)
        release(version)
        with Lab(int(env["GATEWAY_PORT"]), network=network, directory=data / "lab") as lab:
            say(
                f"Booting {len(STATIONS)} virtual PCs over the {'virtual LAN' if network == 'bridge' else 'user network'}"
            )
            for name, gpu in STATIONS.values():
                lab.pc(name, gpu=gpu)
            seat_stations({pc.mac: pc.name for pc in lab.pcs})
            for pc in lab.pcs:
                pc.boot()
            await_boards(processes, [pc.mac for pc in lab.pcs], say)
            say(f"Both PCs are on the board after {time.monotonic() - begun:.0f} s")
            box(env["FLEET_PUBLIC_URL"], password, lab.directory)
            while not once:
                if enter_pressed(within_s=1):
                    for pc in (pc for pc in lab.pcs if not pc.running):
                        print(f"Pressing the power button of {pc.name}")
                        pc.boot()
                processes.watch()
    finally:
        processes.stop()
    return 0


class Progress:
    """A line per step on a log, one line rewritten in place on a terminal."""

    def __init__(self, begun: float) -> None:
        self._begun = begun
        self._open = False

    def __call__(self, text: str, *, passing: bool = False) -> None:
        """Say ``text``; ``passing`` is replaced by what comes next where the output is a terminal, else left out."""
        tty = sys.stdout.isatty()
        if passing and not tty:
            return
        head = f"[{time.monotonic() - self._begun:4.0f} s] "
        print(("\r\033[K" if self._open else "") + head + text[:100], end="" if passing else "\n", flush=True)
        self._open = passing


def people_and_site(data: Path) -> str:
    """The club room with its two classes and rules, and somebody to log in as; made once. Returns the password."""
    from django.contrib.auth.models import User
    from django.utils import timezone

    from fleet.models import ClientClass, HardwareRule, Membership, Site
    from fleet.roles import Role

    kept = data / "demo-password"
    if not kept.is_file():
        kept.touch(mode=0o600)
        kept.write_text(secrets.token_urlsafe(9))
    password = kept.read_text()
    open_until = timezone.now() + timedelta(days=30)
    defaults = {"name": "Club room", "enrolment_until": open_until}
    site, _ = Site.objects.get_or_create(slug="clubroom", defaults=defaults)
    classes = {}
    for slug, name, colour in (("gamer", "Gamer", "blue"), ("contest", "Paper contest", "orange")):
        classes[slug], _ = ClientClass.objects.get_or_create(
            site=site, slug=slug, defaults={"name": name, "colour": colour, "home_percent": 30}
        )
    rules = (
        ("gamer", 10, "1013", "*", "Cirrus Logic"),
        ("gamer", 20, "10de", "*", "NVidia"),
        ("contest", 30, "1002", "*", "ATI"),
        ("contest", 30, "102b", "*", "Matrox (mga), as in 2004"),
    )
    for slug, priority, vendor, device, note in rules:
        HardwareRule.objects.get_or_create(
            site=site,
            vendor=vendor,
            device=device,
            defaults={"client_class": classes[slug], "priority": priority, "note": note},
        )
    user, made = User.objects.get_or_create(
        username=LOGIN, defaults={"is_staff": True, "is_superuser": True, "first_name": "Demo"}
    )
    if made or not user.check_password(password):
        user.set_password(password)
        user.save()
    Membership.objects.get_or_create(user=user, site=site, defaults={"role": Role.SITE_ADMIN})
    return password


def sources() -> str:
    """A digest of what goes into every image beside its recipe: the demo builds anew when the code has changed."""
    digest = hashlib.sha256()
    for top in ("images/builder", "images/initrd", "agents/daemon", "agents/hands", "agents/units"):
        for path in sorted((BASE_DIR / top).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def built_version(processes: Processes, say: Progress) -> "ImageVersion":
    """The demo's version, built by the Celery worker unless it is there. LabError when the build fails."""
    from django.contrib.auth.models import User

    from images.models import Image, ImageFile, ImageVersion, VersionStatus
    from images.services import request_build

    image, made = Image.objects.get_or_create(
        slug="station", defaults={"name": "Event station", "packages": "tmux\nnano\n", "user": "player"}
    )
    if made:
        ImageFile.objects.create(image=image, path="/etc/motd", content="Welcome to the club room.\n")
        ImageFile.objects.create(
            image=image, path="~/.profile", content='PS1="player@\\h:\\w$ "\nPATH=/usr/games:$PATH\n'
        )
        ImageFile.objects.create(
            image=image, path="~/README", content="Whatever you leave here is gone after a cycle.\n"
        )
    reason = f"make demo, sources {sources()}"
    version = ImageVersion.objects.filter(image=image, reason=reason, status=VersionStatus.READY).first()
    if version is not None:
        say(f"{version} is built already")
        return version
    version = request_build(image, User.objects.get(username=LOGIN), reason)
    say(f"Building {version} from Debian packages; about a minute on two cores")
    shown = 0

    def progress() -> bool:
        nonlocal shown
        version.refresh_from_db()
        for step in version.steps.filter(number__gt=shown).order_by("number"):
            if step.finished_at is None:
                done = f" {100 * step.done // step.total} %" if step.total else ""
                say(f"   {step.title}{done}", passing=True)
                break
            say(f"   {step.title} ({(step.finished_at - step.started_at).total_seconds():.1f} s)")
            shown = step.number
        return version.status not in (VersionStatus.QUEUED, VersionStatus.BUILDING)

    wait(progress, BUILD_LIMIT_S, f"{version} is not built", processes)
    if version.status != VersionStatus.READY:
        raise LabError(f"{version} {version.get_status_display().lower()}: {version.failure}")
    return version


def release(version: "ImageVersion") -> None:
    """Give the version to both classes, unless they have it."""
    from django.contrib.auth.models import User

    from fleet.models import ClientClass
    from images.models import Release
    from images.services import release as release_version

    for client_class in ClientClass.objects.filter(site__slug="clubroom"):
        if not Release.objects.filter(client_class=client_class, version=version, current=True).exists():
            release_version(version, client_class, User.objects.get(username=LOGIN), "make demo")


def seat_stations(names: dict[str, str]) -> None:
    """Name and seat the PCs before they boot, as a volunteer would with a list of stickers."""
    from fleet.models import Admission, Client, Site

    site = Site.objects.get(slug="clubroom")
    for seat, (name, _) in STATIONS.items():
        mac = next(mac for mac, have in names.items() if have == name)
        Client.objects.get_or_create(
            mac=mac, defaults={"site": site, "name": name, "seat": seat, "admission": Admission.IN_SERVICE}
        )


def await_boards(processes: Processes, macs: list[str], say: Progress) -> None:
    from fleet.models import Client, ClientState

    # What an earlier run left is not what is seen now.
    Client.objects.filter(mac__in=macs).update(state=ClientState.BOOTING)
    ready: set[str] = set()

    def progress() -> bool:
        clients = list(Client.objects.select_related("client_class").filter(mac__in=macs))
        for client in clients:
            if client.trouble:
                raise LabError(f"{client} does not boot: {client.trouble}")
            if client.state in (ClientState.READY, ClientState.IN_USE) and client.mac not in ready:
                ready.add(client.mac)
                say(f"   {client} is {client.get_state_display().lower()}: class {client.client_class}")
        say(
            "   " + ", ".join(f"{client.seat}: {client.get_state_display().lower()}" for client in clients),
            passing=True,
        )
        return len(ready) == len(macs)

    wait(progress, BOOT_LIMIT_S, "The PCs are not ready", processes)


def wait(done: Callable[[], bool], limit_s: float, trouble: str, processes: Processes) -> None:
    deadline = time.monotonic() + limit_s
    while not done():
        if time.monotonic() > deadline:
            raise LabError(
                f"{trouble} after {limit_s:.0f} s. `python -m tests.lab.demo --verbose` shows what every process prints."
            )
        processes.watch()
        time.sleep(0.5)


def enter_pressed(within_s: float) -> bool:
    """Waits that long; true if somebody pressed Enter meanwhile. Without a terminal nobody does."""
    if not sys.stdin.isatty():
        time.sleep(within_s)
        return False
    readable, _, _ = select.select([sys.stdin], [], [], within_s)
    return bool(readable) and bool(sys.stdin.readline())


def box(url: str, password: str, logs: Path) -> None:
    lines = [
        f"Board   {url}/",
        f"Admin   {url}/admin/",
        f"Login   {LOGIN}   password   {password}",
        "",
        "Try: select A1 on the board, Cycle, give a reason: its home is restored and the user logged in again.",
        "     Restart B1 and watch it boot. Audit log and restores are in the admin.",
        f"PCs' consoles: {logs}/*/serial.log",
        "Enter switches PCs on that are off. Ctrl-C ends everything.",
    ]
    width = max(map(len, lines)) + 2
    print("\n┌" + "─" * width + "┐")
    for line in lines:
        print(f"│ {line:<{width - 1}}│")
    print("└" + "─" * width + "┘\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
