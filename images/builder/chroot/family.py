"""What a family of distributions is to the builder. A new one: docs/builder.md, "A third family"."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from images.builder.run import Runner
from images.builder.volatile import Rule

if TYPE_CHECKING:
    from images.builder.change import Change
    from images.builder.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Package:
    """An installed package; what a version's package list is made of."""

    name: str
    version: str
    architecture: str


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A package of a version for which its archives have a newer one by now."""

    name: str
    installed: str
    available: str
    security: bool


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

    def change(self, recipe: Recipe, tree: Path, wanted: Change, cache: Path, run: Runner) -> None:
        """Remove, upgrade and install the packages that `wanted` names, from where the recipe's packages come from.

        Services do not start, questions are not asked, configuration that the site changed stays. `cache` is a directory that
        later changes have, too. `finish` is due afterwards. Raises RecipeError for a package that does not exist, or is to be
        removed and is not there.
        """

    def snapshot(self, recipe: Recipe) -> str:
        """Names the present state of the recipe's archives (snapshot.py); "" when it cannot be known."""

    @property
    def database(self) -> tuple[str, ...]:
        """Relative paths of a tree that say what is installed, as far as `pending` needs it; not all need be there."""

    def pending(self, recipe: Recipe, tree: Path, cache: Path, run: Runner) -> tuple[Upgrade, ...]:
        """What upgrading all packages would upgrade, sorted by name; of the tree only `database` is there."""

    def packages(self, tree: Path, run: Runner) -> tuple[Package, ...]:
        """What is installed in the tree, sorted by name."""

    def settings(self, tree: Path) -> frozenset[str]:
        """Absolute paths of the files that packages ship for sites to edit (conffiles, %config)."""

    def finish(self, tree: Path, epoch: int) -> None:
        """Make the tree that of a diskless client (trim.py) and forget what the package manager keeps for itself.

        All times after `epoch` (s) are set back to it later. May be called again after a `change`.
        """
