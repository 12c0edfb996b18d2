"""The store: complete or not there at all."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from images.builder.errors import BuildError
from images.builder.scratch import scratch, sweep
from images.builder.store import Artefact, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _file(directory: Path, content: bytes = b"content") -> Path:
    path = directory / "file"
    path.write_bytes(content)
    return path


def test_an_artefact_stands_under_its_sha256_and_is_read_only(store: Store) -> None:
    with store.scratch() as ready:
        artefact = store.put(_file(ready))
    path = store.path(artefact.sha256)
    assert artefact == Artefact(hashlib.sha256(b"content").hexdigest(), 7)
    assert path.read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert path.parent.name == artefact.sha256[:2]


def test_a_file_put_is_taken_over_even_from_another_file_system(store: Store) -> None:
    with scratch(Path("/dev/shm")) as elsewhere:
        path = _file(elsewhere)
        assert path.stat().st_dev != store.root.stat().st_dev, "/dev/shm must be a file system of its own"
        artefact = store.put(path)
        assert not path.exists()
    assert store.require(artefact).read_bytes() == b"content"
    assert list(store.ingest.iterdir()) == []


def test_the_same_content_twice_is_one_artefact(store: Store) -> None:
    with store.scratch() as ready:
        first = store.put(_file(ready))
        second = store.put(_file(ready))
    assert first == second
    assert len(list(store.objects.glob("*/*"))) == 1


def test_verify_names_what_is_not_what_its_name_says(store: Store) -> None:
    with store.scratch() as ready:
        good = store.put(_file(ready, b"good"))
        bad = store.put(_file(ready, b"bad"))
    path = store.path(bad.sha256)
    path.chmod(0o644)
    path.write_bytes(b"bit rot")
    assert list(store.verify()) == [bad.sha256]
    assert store.require(good)


def test_an_artefact_missing_or_cut_short_is_an_error_that_names_it(store: Store) -> None:
    with store.scratch() as ready:
        artefact = store.put(_file(ready))
    path = store.path(artefact.sha256)
    path.chmod(0o644)
    path.write_bytes(b"con")
    with pytest.raises(BuildError, match=artefact.sha256):
        store.require(artefact)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "a" * 63])
def test_what_is_no_sha256_has_no_path(store: Store, name: str) -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        store.path(name)


def test_a_sweep_takes_what_a_killed_owner_left_and_nothing_else(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with scratch(tmp_path) as left:
            (left / "half").write_text("written")
            os.write(writer, os.fsencode(left))
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    left = Path(os.fsdecode(os.read(reader, 4096)))
    os.close(reader)
    os.close(writer)
    with scratch(tmp_path) as mine:
        assert sweep(tmp_path) == [left]
        assert mine.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_directory_goes_away_when_its_work_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with scratch(tmp_path) as path:
            (path / "file").write_text("x")
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []
