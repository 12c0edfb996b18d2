"""What a family of distributions is to the builder. A new one: docs/builder.md, "A third family"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from images.builder.run import Runner
from images.builder.volatile import Rule

if TYPE_CHECKING:
    from images.builder.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Package:
    """An installed package; what a version's package list is made of."""

    name: str
    version: str
    architecture: str


class Family(Protocol):
    """A module or an object with these names; what all families share is in furnish.py and trim.py.

    A `tree` is the directory with the root of the system. Beside it is scratch space (`tree.with_name(…)`), which goes
    away with the build.
    """

    @property
    def title(self) -> str:
        """What people call it, before the suite: "Install Debian bookworm"."""

    @property
    def volatile(self) -> tuple[Rule, ...]:
        """The rules of a recipe that has none of its own."""

    def refuse(self, recipe: Recipe) -> None:
        """Raise RecipeError for a suite, components, packages or a mirror that cannot be this family's.

        Sees no network and no host: people hear of it while they type.
        """

    def bootstrap(self, recipe: Recipe, tree: Path, run: Runner) -> None:
        """Make the new directory `tree` with the base system, one kernel and the recipe's packages.

        The tree remembers where its packages come from, for `change`. Raises RecipeError for a package that does not
        exist, CommandFailed for everything else that goes wrong.
        """

    def change(self, tree: Path, install: Sequence[str], remove: Sequence[str], upgrade: bool, run: Runner) -> None:
        """Upgrade all packages of a tree if `upgrade`, then remove, then install, from where its packages came.

        Services do not start, questions are not asked, configuration that the site changed stays. `finish` is due then.
        Raises RecipeError for a package that does not exist, or is to be removed and is not there.
        """

    def packages(self, tree: Path, run: Runner) -> tuple[Package, ...]:
        """What is installed in the tree, sorted by name."""

    def finish(self, tree: Path, epoch: int) -> None:
        """Make the tree that of a diskless client (trim.py) and forget what the package manager keeps for itself.

        All times after `epoch` (s) are set back to it later. May be called again after a `change`.
        """
