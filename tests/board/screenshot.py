"""``python -m tests.board.screenshot``: docs/board*.png anew, of the real page with a club night's rows.

Database, server and browser are of its own and gone when it ends.
"""

import os
import secrets
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser

from tests.board.server import chromium, web_server

DOCS = Path(__file__).resolve().parents[2] / "docs"
PASSWORD = secrets.token_urlsafe(12)
# Width, height, colour scheme.
PICTURES: dict[str, tuple[int, int, str]] = {
    "board.png": (1280, 800, "light"),
    "board-dark.png": (1280, 800, "dark"),
    "board-phone.png": (390, 844, "light"),
}
MOST_BYTES = 300_000


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="fleet-board-") as scratch:
        environment = scratch_environment(Path(scratch))
        fill()
        with web_server(environment, Path(scratch)) as web, chromium() as browser:
            for name, (width, height, scheme) in PICTURES.items():
                picture = shoot(browser, web.url, width, height, scheme)
                if len(picture) > MOST_BYTES:
                    print(f"{name} has {len(picture)} bytes, more than {MOST_BYTES}.", file=sys.stderr)
                    return 1
                (DOCS / name).write_bytes(picture)
                print(f"docs/{name}: {width}x{height}, {len(picture)} bytes")
    return 0


def scratch_environment(scratch: Path) -> dict[str, str]:
    """A database of its own and a Redis that nobody serves: the page needs none."""
    environment = {
        "FLEET_DATA": str(scratch),
        "FLEET_DATABASE_URL": f"sqlite:///{scratch / 'board.sqlite3'}",
        "FLEET_REDIS_URL": f"unix://{scratch / 'no-redis.sock'}",
        "FLEET_SECRET_KEY": secrets.token_urlsafe(50),
        "FLEET_IMAGE_KEY": str(scratch / "keys/image.key"),
        "DJANGO_SETTINGS_MODULE": "fleet.settings",
    }
    os.environ.update(environment)
    return environment


def fill() -> None:
    import django

    django.setup()
    from django.conf import settings

    from fleet.signing import make_keys

    make_keys(settings.PUBLIC_KEYS)
    from django.contrib.auth.models import User
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    from fleet.models import Site
    from fleet.roles import Role
    from tests.board.rows import make_night
    from tests.world import member

    vera = User.objects.create_user("vera", password=PASSWORD, is_staff=True)
    clubroom = Site.objects.create(slug="clubroom", name="Club room")
    member(vera, clubroom, Role.ORGANISER)
    make_night(clubroom, vera)


def shoot(browser: Browser, url: str, width: int, height: int, scheme: str) -> bytes:
    """The board as a logged-in person sees it, once its line is live."""
    dark = scheme == "dark"
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(f"{url}/login/")
    page.get_by_label("User name").fill("vera")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.locator("[data-line=live]").wait_for()
    picture = page.screenshot()
    context.close()
    return picture


if __name__ == "__main__":
    sys.exit(main())
