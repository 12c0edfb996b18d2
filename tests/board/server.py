"""The web process as the product runs it, and Chromium as people run it."""

import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from tests.services import Service, free_port, start, wait_for

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def web_server(environment: Mapping[str, str], directory: Path, port: int | None = None) -> Iterator[Service]:
    """uvicorn with ``fleet.asgi``, as in the Procfile; ``environment`` names database and Redis.

    With ``port`` it comes back where an earlier one was, so that a test can restart it.
    """
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    argv = [sys.executable, "-m", "uvicorn", "fleet.asgi:application", "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--no-access-log", "--log-level", "warning", "--timeout-graceful-shutdown", "3"]
    service = start(argv, directory / "web.log", {**environment, "FLEET_PUBLIC_URL": url})
    service.url = url
    try:
        wait_for(lambda: _answers(service), "the web process answers", 30)
        yield service
    finally:
        service.stop()


def _answers(service: Service) -> bool:
    assert service.process.poll() is None, f"the web process ended:\n{service.log}"
    try:
        with urllib.request.urlopen(f"{service.url}/login/", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, headless."""
    assert CHROMIUM.is_file(), f"{CHROMIUM} is missing: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()
