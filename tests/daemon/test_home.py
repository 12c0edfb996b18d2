"""The tree digest sees every difference that matters, and only those; the account counts what was the user's."""

import hashlib
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.hands import home

EMPTY = hashlib.sha256(b"").hexdigest()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A home with one of everything that a test without root can make."""
    root = tmp_path / "home"
    (root / ".config").mkdir(parents=True)
    (root / ".config/settings").write_text("volume=11\n")
    (root / ".config-old").write_text("")
    (root / ".profile").write_text("PATH=/usr/games:$PATH\n")
    (root / "current").symlink_to(".config/settings")
    os.mkfifo(root / "pipe", 0o620)
    os.setxattr(root / ".profile", "user.origin", b"template")
    for path, mode in ((".", 0o750), (".config", 0o2755), (".profile", 0o644), (".config/settings", 0o600)):
        (root / path).chmod(mode)
    (root / ".config-old").chmod(0o644)
    (root / "pipe").chmod(0o620)
    return root


def test_the_digest_is_the_one_that_the_protocol_describes(tree: Path) -> None:
    me = (os.getuid(), os.getgid())
    settings_digest = hashlib.sha256(b"volume=11\n").hexdigest()
    profile_digest = hashlib.sha256(b"PATH=/usr/games:$PATH\n").hexdigest()
    records = [
        [".", "d", "750", *me, 0, "", []],
        [".config", "d", "2755", *me, 0, "", []],
        [".config-old", "f", "644", *me, 0, EMPTY, []],
        [".config/settings", "f", "600", *me, 10, settings_digest, []],
        [".profile", "f", "644", *me, 22, profile_digest, [["user.origin", b"template".hex()]]],
        ["current", "l", "777", *me, 0, ".config/settings", []],
        ["pipe", "p", "620", *me, 0, "", []],
    ]
    lines = "".join(json.dumps(record, separators=(",", ":"), ensure_ascii=False) + "\n" for record in records)
    assert home.tree_digest(str(tree)) == hashlib.sha256(lines.encode()).hexdigest()


def retype(tree: Path) -> None:
    (tree / "pipe").unlink()
    (tree / "pipe").touch(0o620)


def relink(tree: Path) -> None:
    (tree / "current").unlink()
    (tree / "current").symlink_to(".config")


CHANGES: dict[str, Callable[[Path], object]] = {
    "content of the same length": lambda tree: (tree / ".config/settings").write_text("volume=12\n"),
    "a new file": lambda tree: (tree / "new").touch(),
    "a new directory": lambda tree: (tree / "new").mkdir(),
    "a removed file": lambda tree: (tree / ".config-old").unlink(),
    "another name": lambda tree: (tree / ".config-old").rename(tree / ".config-odd"),
    "the mode of a file": lambda tree: (tree / ".profile").chmod(0o755),
    "the mode of the home itself": lambda tree: tree.chmod(0o755),
    "the set-group-id bit": lambda tree: (tree / ".config").chmod(0o755),
    "the target of a link": relink,
    "the type": retype,
    "an attribute's value": lambda tree: os.setxattr(tree / ".profile", "user.origin", b"elsewhere"),
    "an attribute more": lambda tree: os.setxattr(tree / ".config-old", "user.x", b""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_changes_the_digest(tree: Path, change: str) -> None:
    before = home.tree_digest(str(tree))
    CHANGES[change](tree)
    assert home.tree_digest(str(tree)) != before


@pytest.mark.root
@pytest.mark.parametrize("path", [".profile", "current", "."])
@pytest.mark.parametrize("owner", [(61234, -1), (-1, 61234)])
def test_another_owner_changes_the_digest(tree: Path, path: str, owner: tuple[int, int]) -> None:
    before = home.tree_digest(str(tree))
    os.chown(tree / path, *owner, follow_symlinks=False)
    assert home.tree_digest(str(tree)) != before


def test_times_and_sockets_content_do_not_matter(tree: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tree / "socket"))
    before = home.tree_digest(str(tree))
    for path in tree.rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
    assert home.tree_digest(str(tree)) == before


def test_a_name_that_is_no_text_is_taken_by_its_bytes_in_any_locale(tree: Path) -> None:
    Path(os.fsdecode(os.fsencode(tree) + b"/caf\xe9")).touch()
    digests = {
        subprocess.run(
            [sys.executable, home.__file__, "digest", str(tree)],
            env={"LC_ALL": locale, "PATH": os.environ["PATH"]},
            capture_output=True,
            check=True,
            text=True,
        ).stdout.strip()
        for locale in ("C", "C.UTF-8", "POSIX")
    }
    assert digests == {home.tree_digest(str(tree))}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.sampled_from(["a", "a-", "a.", "-", "b", "ä", "~"]), min_size=1, max_size=4), max_size=9))
def test_entries_come_in_the_order_of_their_bytes(
    tmp_path_factory: pytest.TempPathFactory, paths: list[list[str]]
) -> None:
    tree = tmp_path_factory.mktemp("tree")
    for parts in paths:
        tree.joinpath(*parts).mkdir(parents=True, exist_ok=True)
    found = list(home.entries(os.fsencode(tree)))
    wanted = {b".", *(os.fsencode(path.relative_to(tree)) for path in tree.rglob("*"))}
    assert found == sorted(wanted)


def test_known_contents_stand_in_for_reading(tree: Path) -> None:
    known = {b".profile": home.file_digest(str(tree / ".profile"))}
    assert home.tree_digest(str(tree), known) == home.tree_digest(str(tree))
    assert home.tree_digest(str(tree), {b".profile": EMPTY}) != home.tree_digest(str(tree))


@pytest.mark.root
def test_the_account_counts_files_and_bytes_but_neither_directories_nor_whiteouts(tree: Path, tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    (upper / "saves/old").mkdir(parents=True)
    (upper / "saves/one").write_bytes(bytes(1000))
    (upper / "saves/old/two").write_bytes(bytes(23))
    (upper / "saves/one-again").hardlink_to(upper / "saves/one")
    (upper / "link").symlink_to("saves")
    os.mknod(upper / ".profile", stat.S_IFCHR, os.makedev(0, 0))
    assert home.account(str(tree), str(upper)) == {"before": home.tree_digest(str(tree)), "files": 4, "bytes": 1023}


def test_as_a_program_it_says_how_it_is_used(capfd: pytest.CaptureFixture[str]) -> None:
    assert home.main(["digest"]) == 2
    assert "digest <tree>" in capfd.readouterr().err
