"""What a recipe puts into the tree of any family: its files, its user, the user's files, its hooks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from images.builder.chroot import inside
from images.builder.errors import RecipeError
from images.builder.run import CommandFailed, Runner

if TYPE_CHECKING:
    from images.builder.recipe import Hook, Recipe


def configure(recipe: Recipe, tree: Path, run: Runner) -> None:
    """Put in what every client has, then the recipe's files, then the user and the files of its home."""
    inside.write(tree, "/etc/hostname", "client\n")
    inside.write(
        tree,
        "/etc/hosts",
        "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 client\n",
    )
    for file in recipe.files:
        inside.write(tree, file.path, file.content, file.mode)
    user = ["--uid", str(recipe.uid), "--user-group", "--create-home", "--shell", "/bin/bash", recipe.user]
    try:
        inside.run_inside(tree, ["useradd", *user], run)
    except CommandFailed as error:
        if error.exit_code in (4, 9):  # useradd(8): UID already in use, user name already in use
            raise RecipeError("user", f"{recipe.user} ({recipe.uid}): {error.output.strip()}") from error
        raise
    gid = os.stat(tree / "home" / recipe.user).st_gid  # noqa: PTH116
    for file in recipe.home_files:
        path = f"/home/{recipe.user}/{file.path}"
        inside.write(tree, path, file.content, file.mode, (recipe.uid, gid))


def hook(script: Hook, tree: Path, run: Runner) -> None:
    """Run one hook in the tree. Raises RecipeError that names it and has the line to paste."""
    try:
        argv = ["/bin/sh", "-euc", script.script, script.name]
        inside.run_inside(tree, argv, run, network=script.network)
    except CommandFailed as error:
        raise RecipeError("hooks", f"{script.name!r} failed: {error}") from error
