import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.db import OperationalError, connection

from fleet.signing import make_keys
from tests.world import World, make_world


@pytest.fixture(scope="session")
def django_db_modify_db_settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """SQLite in a file: workers and gateways are processes of their own and must see the rows."""
    database = settings.DATABASES["default"]
    if database["ENGINE"] == "fleet.sqlite":
        database.setdefault("TEST", {})["NAME"] = str(tmp_path_factory.mktemp("database") / "test.sqlite3")
    database["CONN_MAX_AGE"] = None  # a connection must not end of old age in the middle of a test's transaction


@pytest.fixture(scope="session", autouse=True)
def static_root(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whitenoise warns of a directory that only collectstatic makes; tests find static files where they are written, when they are asked for.

    Each test has a browser or two of its own, for which all files would be listed first.
    """
    settings.STATIC_ROOT = tmp_path_factory.mktemp("static")
    settings.WHITENOISE_AUTOREFRESH = True


@pytest.fixture(scope="session", autouse=True)
def image_key(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Versions are signed as by a worker of builds."""
    settings.PUBLIC_KEYS = tmp_path_factory.mktemp("keys")
    make_keys(settings.PUBLIC_KEYS)
    settings.IMAGE_KEY = str(settings.PUBLIC_KEYS / "image.key")
    settings.SENDER_BOOK = settings.PUBLIC_KEYS / "book.sqlite3"


@pytest.fixture(scope="session", autouse=True)
def quick_passwords() -> Iterator[None]:
    """One round instead of a million, or most of a test's time went into its three people's passwords."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PBKDF2PasswordHasher, "iterations", 1)
        yield


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> Iterator[None]:
    """How tables are emptied after a test that committed rows: beside the processes it started, and despite our triggers.

    What Django writes down of the models themselves stays: to make that anew takes longer than most tests do.
    """
    operations, kept = type(connection.ops), {"django_content_type", "auth_permission"}
    flush, execute = operations.sql_flush, operations.execute_sql_flush

    def without_triggers(self: Any, style: Any, tables: list[str], **options: Any) -> list[str]:
        """SQLite empties tables by DELETE, which triggers refuse: for this they are lifted."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
            triggers = cursor.fetchall()
        statements = list(flush(self, style, [table for table in tables if table not in kept], **options))
        return [*(f'DROP TRIGGER "{name}"' for name, _ in triggers), *statements, *(sql for _, sql in triggers)]

    def row_by_row(self: Any, style: Any, tables: list[str], **options: Any) -> list[str]:
        """PostgreSQL's TRUNCATE makes each table and each index anew, which takes as long, and wants all of them at once."""
        lifted = "SET LOCAL session_replication_role = replica"  # what triggers and foreign keys say, until the transaction ends
        return [lifted, *(f"DELETE FROM {self.quote_name(table)}" for table in tables if table not in kept)]

    def again(self: Any, statements: Any) -> None:
        """A gateway's transaction has one row and wants the next, and so do we: one of us has to go."""
        for _ in range(9):
            with contextlib.suppress(OperationalError):
                return execute(self, statements)
        return execute(self, statements)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("django.core.management.commands.flush.emit_post_migrate_signal", lambda *_, **__: None)
        if connection.vendor == "sqlite":
            patch.setattr(operations, "sql_flush", without_triggers)
        else:
            patch.setattr(operations, "sql_flush", row_by_row)
            patch.setattr(operations, "execute_sql_flush", again)
        yield


@pytest.fixture
def world(db: None) -> World:
    return make_world()
