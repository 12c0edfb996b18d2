"""What makes a derived version of its parent, as frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from images.builder.errors import RecipeError
from images.builder.recipe import Recipe, RecipeFile

_KEYS = {"install", "remove", "upgrade", "files", "script", "by_hand"}


@dataclass(frozen=True, slots=True)
class Change:
    """In this order: packages removed, all upgraded, packages installed, files put in, a script run in the chroot.

    `by_hand` stands for what somebody did in a maintenance shell; nobody can tell it from the change alone.
    """

    install: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    upgrade: bool = False
    files: tuple[RecipeFile, ...] = ()
    script: str = ""
    by_hand: bool = False

    @classmethod
    def of(cls, recipe: Recipe, **values: Any) -> Change:
        """A change of a version of `recipe`. Raises RecipeError, naming the field, for what cannot be done to it."""
        change = cls(**values)
        if change == cls():
            raise RecipeError("install", "the change is empty: name packages, a file or a script")
        for field in ("install", "remove"):
            try:
                replace(recipe, packages=getattr(change, field))
            except RecipeError as error:
                raise RecipeError(field, str(error).removeprefix(f"{error.field}: ")) from error
        replace(recipe, files=change.files)
        if both := sorted(set(change.install) & set(change.remove)):
            raise RecipeError("remove", f"{both[0]} is to be installed, too")
        return change

    @classmethod
    def from_dict(cls, recipe: Recipe, data: Mapping[str, Any]) -> Change:
        """Read what `to_dict` gave. Raises RecipeError as `of`, and for unknown keys."""
        if unknown := sorted(set(data) - _KEYS):
            raise RecipeError(unknown[0], f"unknown; a change has {', '.join(sorted(_KEYS))}")
        files = Recipe.from_dict({**recipe.to_dict(), "files": data.get("files", [])}).files
        values = {**data, "files": files}
        for name in ("install", "remove"):
            values[name] = tuple(data.get(name, ()))
        return cls.of(recipe, **values)

    def to_dict(self) -> dict[str, Any]:
        return {
            "install": list(self.install),
            "remove": list(self.remove),
            "upgrade": self.upgrade,
            "files": [file.to_dict() for file in self.files],
            "script": self.script,
            "by_hand": self.by_hand,
        }

    def __str__(self) -> str:
        """For people: install tmux · remove nano · upgrade all · 2 files · a script."""
        parts = [
            *([f"remove {' '.join(self.remove)}"] if self.remove else []),
            *(["upgrade all"] if self.upgrade else []),
            *([f"install {' '.join(self.install)}"] if self.install else []),
            *([f"put {' '.join(file.path for file in self.files)}"] if self.files else []),
            *(["run a script"] if self.script else []),
            *(["changed by hand"] if self.by_hand else []),
        ]
        return " · ".join(parts)
