"""Real images for tests: each is built once and kept until the recipe or the builder changes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from images.builder.director import Context, build
from images.builder.initrd import with_hands
from images.builder.manifest import Manifest
from images.builder.recipe import Recipe, RecipeFile
from images.builder.store import Store

PROJECT = Path(__file__).resolve().parents[2]
CACHE = PROJECT / "var/cache/test-image"
DAEMON = PROJECT / "agents/daemon"
HANDS = PROJECT / "agents/hands"
KEPT = 4  # images of earlier states of the builder; each is about 200 MB

SMALL = Recipe(
    name="test-small",
    suite="bookworm",
    packages=("tmux",),
    files=(RecipeFile("/etc/motd", "A test image.\n"),),
    home_files=(
        RecipeFile(".profile", "PATH=/usr/games:$PATH\n"),
        RecipeFile(".config/game/settings", "volume=11\n"),
    ),
)


def built_image(recipe: Recipe = SMALL) -> tuple[Manifest, Store]:
    """The version of `recipe` and the store that has it; builds it (about 45 s) unless it is in the cache."""
    place = CACHE / _key(recipe)
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once build it once
        os.utime(place)
        store = Store(place / "store")
        known = place / "digest"
        if known.is_file():
            return Manifest.load(store, known.read_text()), store
        _drop_oldest()
        manifest = build(recipe, Context(place / "work", store, DAEMON), Silent())
        shutil.rmtree(place / "work")  # the tree it keeps is ten times what the store has
        known.write_text(manifest.digest)
        return manifest, store


def _key(recipe: Recipe) -> str:
    """Changes with the recipe and with everything that a build puts in or is made by."""
    digest = hashlib.sha256(recipe.digest.encode())
    for top in (PROJECT / "images/builder", PROJECT / "images/initrd", *with_hands(DAEMON)):
        for path in sorted(top.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(PROJECT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _drop_oldest() -> None:
    for place in sorted(CACHE.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(place)


class Recorded:
    """A step that remembers what it was told."""

    def __init__(self, name: str, title: str) -> None:
        self.name = name
        self.title = title
        self.commands: list[tuple[str, ...]] = []
        self.lines: list[str] = []
        self.exit_codes: list[int] = []
        self.done: list[tuple[int, int]] = []
        self.bytes: list[tuple[int, int]] = []
        self.failed = False

    def command(self, argv: Sequence[str]) -> None:
        self.commands.append(tuple(argv))

    def output(self, text: str) -> None:
        self.lines.append(text)

    def exited(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)

    def progress(self, done: int, total: int, bytes_done: int = 0, bytes_total: int = 0) -> None:
        self.done.append((done, total))
        self.bytes.append((bytes_done, bytes_total))


class Silent:
    """Steps that are only remembered, in `steps`."""

    def __init__(self) -> None:
        self.steps: list[Recorded] = []

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[Recorded]:
        step = Recorded(name, title)
        self.steps.append(step)
        try:
            yield step
        except BaseException:
            step.failed = True
            raise

    @property
    def names(self) -> list[str]:
        return [step.name for step in self.steps]
