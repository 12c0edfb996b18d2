"""Working in a tree as if it were the root: a link to /etc in it is the tree's /etc, never the host's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from images.builder.errors import BuildError
from images.builder.run import Runner

_MOST_LINKS = 40  # MAXSYMLINKS of the kernel

# A namespace of the line's own: it stays harmless when a person pastes it.
_ENTER = [
    "unshare",
    "--mount",
    "--pid",
    "--fork",
    "--kill-child",
    "sh",
    str(Path(__file__).with_name("enter.sh")),
]


def run_inside(tree: Path, argv: list[str], run: Runner) -> str:
    """Run a command in the tree, with /proc, a small /dev and empty /run and /tmp of its own."""
    return _enter(tree, argv, run, None)


def run_beside(tree: Path, argv: list[str], run: Runner, watch: Callable[[str], object] | None = None) -> str:
    """Run a package manager of the host on the tree: the scripts of its packages find there what a hook finds."""
    return _enter(tree, ["--beside", *argv], run, watch)


def _enter(tree: Path, words: list[str], run: Runner, watch: Callable[[str], object] | None) -> str:
    policy = tree / "usr/sbin/policy-rc.d"
    is_ours = not policy.exists()
    try:
        return run([*_ENTER, str(tree), *words], watch=watch)
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
