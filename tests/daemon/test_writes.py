"""What the daemon tells of writes to the root: young files of the root's own file system, by what a rule could name."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agents.hands import writes


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A root as the initrd left it: what the share has, in part as real directories."""
    for path in ("share/var/lib/game", "share/opt/tool", "root/var/lib/game", "root/.ro", "root/.config"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "share/opt/tool/conf").write_text("shipped")
    (tmp_path / "root/var/lib/game/old").write_text("copied")
    time.sleep(0.05)  # more than a tick of the kernel's clock, by which it stamps files
    (tmp_path / "handover").touch()
    time.sleep(0.05)
    return tmp_path


def told(place: Path, upper: str = "no upper") -> list[dict[str, Any]]:
    return writes.written(str(place / "root"), str(place / upper), str(place / "share"), str(place / "handover"))


def put(path: Path, size: int = 5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)


def test_nothing_is_told_of_a_root_that_nobody_touched(place: Path) -> None:
    assert told(place) == []


def test_files_are_summed_up_by_the_deepest_path_of_the_image(place: Path) -> None:
    put(place / "root/var/lib/game/new/one", 5000)
    put(place / "root/var/lib/game/two")
    put(place / "root/.config/mine")
    put(place / "root/var/lib/game/old")
    found = {entry["path"]: entry for entry in told(place)}
    assert set(found) == {"/var/lib/game", "/"}
    assert found["/var/lib/game"]["files"] == 3
    assert found["/var/lib/game"]["bytes"] >= 5010
    assert found["/"]["examples"] == ["/.config/mine"]
    assert sorted(found["/var/lib/game"]["examples"]) == [f"/var/lib/game/{name}" for name in ("new/one", "old", "two")]


def test_a_file_that_was_unpacked_with_an_old_time_is_new_all_the_same(place: Path) -> None:
    put(place / "root/var/lib/game/save")
    os.utime(place / "root/var/lib/game/save", (1, 1))
    assert [entry["path"] for entry in told(place)] == ["/var/lib/game"]


def test_in_an_overlay_it_is_the_upper_layer_that_tells(place: Path) -> None:
    put(place / "upper/opt/tool/conf")
    put(place / "upper/opt/tool/cache/x")
    put(place / "root/var/lib/game/two")
    assert {entry["path"] for entry in told(place, "upper")} == {"/opt/tool/conf", "/opt/tool"}


def test_what_is_no_file_is_not_told_nor_what_nobody_could_write_down(place: Path) -> None:
    (place / "root/var/lib/game/link").symlink_to("nowhere")
    os.mkfifo(place / "root/var/lib/game/pipe")
    put(place / "root/var/lib/game/two\nlines")
    Path(os.fsdecode(os.fsencode(place) + b"/root/var/lib/game/\xff")).write_text("x")
    put(place / f"root/var/{'long' * 50}/x")
    for elsewhere in ("home/player", "tmp", "run", ".ro"):
        put(place / "root" / elsewhere / "x")
    assert told(place) == []


def test_the_largest_are_told_when_there_are_too_many(place: Path) -> None:
    for number in range(writes.MOST + 20):
        (place / f"share/srv/{number}").mkdir(parents=True)
        put(place / f"root/srv/{number}/x", 4096 * (number + 1))
    found = told(place)
    assert len(found) == writes.MOST
    assert found[0]["path"] == f"/srv/{writes.MOST + 19}"


def test_without_a_handover_nothing_is_told(place: Path) -> None:
    put(place / "root/var/lib/game/two")
    (place / "handover").unlink()
    assert told(place) == []


@pytest.fixture
def mounted(place: Path) -> Iterator[Path]:
    target = place / "root/mnt"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "other", target], check=True)
    yield target
    subprocess.run(["umount", target], check=True)


@pytest.mark.root
def test_other_file_systems_are_not_looked_into(place: Path, mounted: Path) -> None:
    put(mounted / "x")
    assert told(place) == []


def test_a_directory_that_vanishes_while_it_is_read_is_left_out(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(place / "root/var/lib/game/two")
    real = os.lstat

    def vanishing(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if str(path).endswith("/two"):
            shutil.rmtree(place / "root/var/lib/game", ignore_errors=True)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "lstat", vanishing)
    assert told(place) == []
