"""Settings from the environment: what is refused, what is documented, what a server is warned of."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from pytest_django import Settings

from fleet import checks
from fleet.env import Env

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("reader", "value", "complaint"),
    [
        (lambda env: env.flag("X", False), "ture", "X='ture' is neither yes nor no"),
        (lambda env: env.flag("X", False), "", "is neither yes nor no"),
        (lambda env: env.number("X", 1, low=1, high=9), "10", "X=10 is out of range: it must be 1 to 9"),
        (lambda env: env.number("X", 1, low=1, high=9), "1.5", "X='1.5' is not a whole number"),
        (lambda env: env.path("X", Path("/")), "var", "X='var' is not an absolute path"),
        (lambda env: env.url("X", "", schemes=("https",)), "ftp://x", "X must be a URL beginning with https://"),
        (lambda env: env.database("X", ""), "mysql://x", "X must begin with sqlite:/// or postgres://"),
        (lambda env: env.secret("X"), "hunter2", "X is too short: it needs at least 32 characters"),
    ],
)
def test_a_bad_value_is_refused_by_its_name(reader: Any, value: str, complaint: str) -> None:
    with pytest.raises(ImproperlyConfigured) as refused:
        reader(Env({"X": value}))
    assert complaint in str(refused.value)
    assert "hunter2" not in str(refused.value), "a secret is never shown"


def test_what_must_be_set_is_asked_for() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"X is not set\. .* \.env\.example"):
        Env({}).text("X")


def test_good_values_are_read() -> None:
    env = Env({"FLAG": "On", "NUMBER": " 7 ", "WORDS": "a, b,,c", "TEXT": "$HOME", "URL": "http://x/"})
    assert env.flag("FLAG", False) is True
    assert env.number("NUMBER", 1, low=1, high=9) == 7
    assert env.words("WORDS") == ["a", "b", "c"]
    assert env.text("TEXT") == "$HOME", "a dollar names no other variable"
    assert env.url("URL", "", schemes=("http",)) == "http://x"


def test_every_setting_is_explained_in_the_example() -> None:
    read = set(re.findall(r'"(FLEET_[A-Z_]+)"', (ROOT / "fleet/settings.py").read_text()))
    explained = set(re.findall(r"^# (FLEET_[A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert read == explained


def found(**_: Any) -> set[str]:
    return {str(check.id) for check in run_checks(include_deployment_checks=True) if str(check.id).startswith("fleet.")}


def test_a_server_as_it_should_be_has_nothing_to_be_told(settings: Settings, tmp_path: Path) -> None:
    settings.SECRET_KEY_CONFIGURED, settings.HTTPS, settings.STORE = True, True, tmp_path / "store"
    assert found() == set()


def test_what_a_server_lacks_is_told_by_id(settings: Settings, tmp_path: Path) -> None:
    key = tmp_path / "command.key"
    key.write_text("x")
    key.chmod(0o644)
    settings.SECRET_KEY_CONFIGURED, settings.HTTPS, settings.DEBUG = False, False, True
    settings.COMMAND_KEY = settings.SESSION_KEY = str(key)
    settings.STORE = Path("/proc/sys/kernel/random/boot_id")  # a file that nobody may write, root neither
    assert found() >= {"fleet.E001", "fleet.E002", "fleet.E003", "fleet.E004", "fleet.W001", "fleet.W003"}


@pytest.mark.parametrize(("place", "told"), [("/srv/fleet/fleet.sqlite3", 0), ("/mnt/share/fleet.sqlite3", 1)])
def test_sqlite_on_a_share_is_told_of(monkeypatch: pytest.MonkeyPatch, place: str, told: int) -> None:
    default = {"ENGINE": "django.db.backends.sqlite3", "NAME": place}
    real = SimpleNamespace(DATABASES={"default": default}, GATEWAY_URL="http://192.0.2.1:8001", DATA=Path("/srv/fleet"))
    monkeypatch.setattr(checks, "settings", real)
    assert [warning.id for warning in checks.database(None)] == ["fleet.W002"] * told
