"""What can go wrong in a build, sorted by who has to act."""

from __future__ import annotations

import re


class BuildError(Exception):
    """A build that cannot go on; the message names the thing, what happened and what to do next."""


class RecipeError(BuildError):
    """The recipe asks for something that cannot be: the site's volunteer changes `field`."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class DiskFull(BuildError):
    """No space left where the build works or where the store is: the operator makes room."""


def refuse_unless(pattern: re.Pattern[str], field: str, value: str, wanted: str) -> None:
    """Raise RecipeError for `field` unless the whole `value` matches; `wanted` says in words what does."""
    if not pattern.fullmatch(value):
        raise RecipeError(field, f"{value!r} is not {wanted}")
