"""One thing carried out while the next is prepared."""

import threading
from contextvars import ContextVar
from typing import Any

import pytest
from django.db import connection, transaction

from fleet.overlap import Overlap

HERE: ContextVar[str] = ContextVar("HERE", default="")


def where() -> tuple[str, str]:
    return threading.current_thread().name, HERE.get()


def test_what_is_done_here_is_done_at_once(db: None) -> None:
    with Overlap[tuple[str, str]]() as other:
        other.do(where)
        assert other.outcomes == [where()]
        assert not other.busy


def test_within_a_transaction_all_is_done_here_for_nobody_else_sees_what_it_wrote(db: None) -> None:
    with transaction.atomic(), Overlap[tuple[str, str]]() as other:
        other.do_meanwhile(where)
        assert other.outcomes == [where()]


def test_sqlite_has_one_writer_and_postgresql_two(transactional_db: None) -> None:
    token = HERE.set("of the one who asks")
    try:
        with Overlap[tuple[str, str]]() as other:
            other.do_meanwhile(where)
            other.do_meanwhile(where)
            other.wait()
            ((one, said), (two, _)) = other.outcomes
    finally:
        HERE.reset(token)
    assert said == "of the one who asks"
    assert one == two
    assert (one == threading.current_thread().name) == (connection.vendor == "sqlite")


@pytest.mark.skipif(
    "connection.vendor == 'sqlite'", reason="SQLite has no second writer; `make test` runs this on PostgreSQL, too"
)
def test_both_get_on_and_the_second_connection_is_closed(transactional_db: None) -> None:
    go_on = threading.Event()

    def backend() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            (pid,) = cursor.fetchone()
        assert go_on.wait(10)
        return int(pid)

    with Overlap[int]() as other:
        other.do_meanwhile(backend)
        assert other.busy
        go_on.set()
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        assert cursor.fetchone() != (other.outcomes[0],)
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", other.outcomes)
        assert cursor.fetchone() == (0,)


def test_what_breaks_is_told_to_who_waits_and_nothing_more_is_begun(transactional_db: None) -> None:
    def breaks() -> int:
        raise MemoryError

    begun: list[int] = []

    def both() -> None:
        with Overlap[Any]() as other:
            other.do_meanwhile(breaks)
            other.do_meanwhile(begun.append, 1)

    with pytest.raises(MemoryError):
        both()
    assert begun == []
