"""Home templates from archives: what comes in, and what is refused with its reason."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from images.builder import squashfs
from images.builder.errors import RecipeError
from images.builder.run import Runner
from images.builder.store import Artefact, Store
from images.builder.template import Limits, Refused, make, unpack
from tests.builder.images import DAEMON, HANDS, PROJECT, SMALL, Recorded


def entry(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=kind, linkname=target)


def archive(place: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> Path:
    path = place / "home.tar"
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_files_directories_and_links_come_in_as_they_are(tmp_path: Path, mode: str) -> None:
    packed = archive(
        tmp_path,
        entry("./.config", type=tarfile.DIRTYPE, mode=0o700),
        entry("./.config/game/settings", b"volume=11\n", mode=0o600, mtime=1_600_000_000),
        link("./saves", "/var/games/saves"),
        link("./same", "./.config/game/settings", tarfile.LNKTYPE),
        mode=mode,
    )
    contents = unpack(packed, tmp_path / "home", "player")
    settings = tmp_path / "home/.config/game/settings"
    assert settings.read_text() == (tmp_path / "home/same").read_text() == "volume=11\n"
    assert (stat.S_IMODE(settings.stat().st_mode), settings.stat().st_mtime) == (0o600, 1_600_000_000)
    assert os.readlink(tmp_path / "home/saves") == "/var/games/saves"  # noqa: PTH115
    assert (contents.files, contents.bytes, contents.secrets) == (4, 10, [])


@pytest.mark.parametrize("way", ["", "player/", "home/player/", "./home/player/"])
def test_the_home_is_found_where_people_pack_it(tmp_path: Path, way: str) -> None:
    unpack(archive(tmp_path, entry(f"{way}.profile", b"x"), entry(f"{way}b/c", b"y")), tmp_path / "home", "player")
    assert sorted(str(path.relative_to(tmp_path / "home")) for path in (tmp_path / "home").rglob("*")) == [
        ".profile",
        "b",
        "b/c",
    ]


def test_a_zip_comes_in_too(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "home.zip", "w") as zipped:
        zipped.writestr("player/readme.txt", "hello")
    assert unpack(tmp_path / "home.zip", tmp_path / "home", "player").bytes == 5
    assert (tmp_path / "home/readme.txt").read_text() == "hello"
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as zipped:
        zipped.writestr("../evil", "x")
    with pytest.raises(Refused, match=r"'\.\./evil'.*'\.\.'"):
        unpack(tmp_path / "evil.zip", tmp_path / "other", "player")


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([entry("../evil", b"x")], "'..'"),
        ([entry("a/../../evil", b"x")], "'..'"),
        ([entry("/etc/passwd", b"x")], "an empty part"),
        ([entry("a\nb", b"x")], "control character"),
        ([entry("disk", type=tarfile.BLKTYPE, devmajor=8)], "'disk' is a device"),
        ([entry("tty", type=tarfile.CHRTYPE, devmajor=4)], "'tty' is a device"),
        ([entry("pipe", type=tarfile.FIFOTYPE)], "'pipe' is a FIFO"),
        ([entry("su", b"x", mode=0o4755)], "'su' is setuid or setgid"),
        ([entry("sg", b"x", mode=0o2755)], "'sg' is setuid or setgid"),
        ([link("etc", "/etc"), entry("etc/passwd", b"x")], "behind the link 'etc'"),
        ([link("up", ".."), entry("up/evil", b"x")], "behind the link 'up'"),
        ([link("a", "/etc"), link("b", "a/passwd", tarfile.LNKTYPE)], "hard link to 'a/passwd', which is not in it"),
        ([link("b", "../../passwd", tarfile.LNKTYPE)], "hard link to '../../passwd'"),
        ([entry("a", b"1"), entry("./a", b"2")], "is in it twice"),
        ([link("a", "b"), entry("a", b"2")], "is in it twice"),
        ([entry("big", b"x" * 2000)], "unpacks to more than"),
        ([entry(f"f{number}") for number in range(12)], "more than 10 files"),
        ([], "there is nothing in it"),
    ],
)
def test_what_no_template_may_have_is_refused_by_name_and_nothing_lies_outside(
    tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]], reason: str
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    packed = archive(tmp_path, *members)
    with pytest.raises(Refused) as caught:
        unpack(packed, place / "home", "player", Limits(bytes=1000, files=10))
    assert reason in str(caught.value)
    assert [path.name for path in place.iterdir()] == ["home"]


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b broken", b"PK\x03\x04 broken"])
def test_rubbish_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rubbish").write_bytes(content)
    with pytest.raises(Refused, match=r"it cannot be read|there is nothing in it"):
        unpack(tmp_path / "rubbish", tmp_path / "home", "player")


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    packed = archive(tmp_path, *(entry(f"f{number}", os.urandom(50_000)) for number in range(5)))
    packed.write_bytes(packed.read_bytes()[:100_000])
    with pytest.raises(Refused, match="it cannot be read"):
        unpack(packed, tmp_path / "home", "player")


@pytest.mark.slow
def test_a_header_that_wants_all_memory_gets_none_of_it(tmp_path: Path) -> None:
    """A pax header of 3 GiB of zeros packs to a few MiB."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 3 << 30
    with (tmp_path / "bomb").open("wb") as file:
        gzip = subprocess.Popen(["gzip", "-1"], stdin=subprocess.PIPE, stdout=file)
        assert gzip.stdin is not None
        gzip.stdin.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(3 << 10):
            gzip.stdin.write(bytes(1 << 20))
        gzip.stdin.close()
        gzip.wait()
    argv = [
        sys.executable,
        "-m",
        "images.builder.template",
        str(tmp_path / "bomb"),
        str(tmp_path / "home"),
        "--user",
        "player",
    ]
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert (done.returncode, "want more than 1024 MiB of memory" in done.stdout) == (3, True), done


def test_secrets_are_pointed_out(tmp_path: Path) -> None:
    names = [".ssh/id_ed25519", ".ssh/known_hosts", ".mozilla/firefox/x.default/logins.json", ".netrc", ".profile"]
    contents = unpack(archive(tmp_path, *(entry(name, b"x") for name in names)), tmp_path / "home", "player")
    assert contents.secrets == [
        (".mozilla/firefox/x.default/logins.json", "browser passwords"),
        (".netrc", "access token"),
        (".ssh/id_ed25519", "ssh key"),
    ]


@pytest.fixture
def before(tmp_path: Path) -> tuple[Artefact, Store]:
    """The template in use: two files of user 1234:1235."""
    home = tmp_path / "before"
    home.mkdir()
    (home / "kept").write_text("kept")
    (home / "gone").write_text("gone")
    (home / "other").write_text("one")
    store = Store(tmp_path / "store")
    subprocess.run(
        [*squashfs.command(home, tmp_path / "packed", 0), "-force-uid", "1234", "-force-gid", "1235"], check=True
    )
    return store.put(tmp_path / "packed"), store


@pytest.mark.slow
def test_a_template_belongs_to_the_user_and_its_difference_is_told(
    tmp_path: Path, before: tuple[Artefact, Store]
) -> None:
    packed = archive(
        tmp_path, entry("kept", b"kept"), entry("other", b"two"), entry("new", b"n"), entry("run.sh", b"x", mode=0o755)
    )
    run = Runner(Recorded("template", ""))
    template = make(packed, SMALL, before[0], before[1], tmp_path / "work", DAEMON, run)
    assert {name: template.difference[name] for name in ("added", "removed", "changed")} == {
        "added": 2,
        "removed": 1,
        "changed": 1,
    }
    assert template.difference["paths"] == ["-gone", "+new", "~other", "+run.sh"]
    # As a client computes it, of what it mounts.
    subprocess.run(
        ["unsquashfs", "-q", "-n", "-d", tmp_path / "look", before[1].require(template.squashfs)], check=True
    )
    done = subprocess.run(
        [sys.executable, HANDS / "home.py", "digest", tmp_path / "look"], capture_output=True, text=True, check=True
    )
    assert (tmp_path / "look/new").stat().st_uid == 1234
    assert (tmp_path / "look").stat().st_gid == 1235
    assert template.tree_digest == done.stdout.strip()
    assert list((tmp_path / "work").iterdir()) == []
    again = make(packed, SMALL, before[0], before[1], tmp_path / "work", DAEMON, run)
    assert again == template


@pytest.mark.slow
def test_a_refused_archive_leaves_nothing(tmp_path: Path, before: tuple[Artefact, Store]) -> None:
    packed = archive(tmp_path, entry("a", b"x"), entry("su", b"x", mode=0o4755))
    objects = sorted(before[1].root.rglob("*"))
    with pytest.raises(RecipeError, match="archive: 'su' is setuid or setgid") as caught:
        make(packed, SMALL, before[0], before[1], tmp_path / "work", DAEMON, Runner(Recorded("template", "")))
    assert caught.value.field == "archive"
    assert sorted(before[1].root.rglob("*")) == objects
    assert list((tmp_path / "work").iterdir()) == []
