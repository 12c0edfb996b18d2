"""Working in a tree as if it were the root: a link to /etc in it is the tree's /etc, never the host's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from images.builder.errors import BuildError
from images.builder.run import Runner

_ENTER = Path(__file__).with_name("enter.py")
_MOST_LINKS = 40  # MAXSYMLINKS of the kernel


def entering(tree: Path, *, network: bool = False) -> list[str]:
    """The words before a command that runs it in the tree (`enter.py`); harmless when a person pastes them."""
    return [sys.executable, str(_ENTER), *(["--network"] if network else []), str(tree)]


def run_inside(tree: Path, argv: list[str], run: Runner, *, network: bool = False) -> str:
    """Run a command in the tree, in namespaces of its own, with /proc, a small /dev and empty /run and /tmp."""
    with no_services(tree):
        return run([*entering(tree, network=network), *argv])


@contextmanager
def no_services(tree: Path) -> Iterator[None]:
    """Leave nothing of the policy that `enter.sh` puts over the tree's own: its mount point was made for it."""
    policy = tree / "usr/sbin/policy-rc.d"
    is_ours = not policy.exists()
    try:
        yield
    finally:
        if is_ours:
            policy.unlink(missing_ok=True)


def locate(tree: Path, path: str) -> Path:
    """Where the tree has its absolute `path`, all links on the way and at the end followed inside the tree.

    What does not exist yet is taken as written. Raises BuildError for a loop of links.
    """
    pending = path.split("/")[::-1]
    at, followed = "", 0
    while pending:
        part = pending.pop()
        if part in ("", "."):
            continue
        if part == "..":
            at = at.rpartition("/")[0]
            continue
        here = f"{tree}{at}/{part}"
        if not os.path.islink(here):  # noqa: PTH114 - on text
            at = f"{at}/{part}"
            continue
        followed += 1
        if followed > _MOST_LINKS:
            raise BuildError(f"{path}: too many symbolic links in the image")
        target = os.readlink(here)  # noqa: PTH115
        pending += target.split("/")[::-1]
        at = "" if target.startswith("/") else at
    return Path(f"{tree}{at}")


def write(tree: Path, path: str, content: str, mode: int = 0o644, owner: tuple[int, int] = (0, 0)) -> None:
    """Write a file in the tree; directories missing above it are made (0755) with the same owner."""
    target = locate(tree, path)
    missing = [parent for parent in target.parents if not parent.exists()]
    try:
        for parent in reversed(missing):
            parent.mkdir()
            os.chown(parent, *owner)
        target.write_text(content, newline="")
    except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise BuildError(f"{path}: a file cannot be put there: {error.strerror}") from error
    os.chown(target, *owner)
    target.chmod(mode)
