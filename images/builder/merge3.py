"""Three versions of a text made one, by diff3 (diffutils, which every Debian has)."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from images.builder.errors import BuildError

NAMES = ("yours", "before", "package")  # in the marks of a conflict, in diff3's order
MARKS = ("<<<<<<< ", ">>>>>>> ")  # at the beginning of a line


def merge(ours: str, base: str, theirs: str) -> tuple[str, bool]:
    """What both changed of `base`, and whether nobody has to decide anything. Where they contradict each other marks stand.

    Raises BuildError when diff3 cannot be run.
    """
    with tempfile.TemporaryDirectory(prefix="fleet-merge-") as work:
        paths = [Path(work) / name for name in NAMES]
        for path, text in zip(paths, (ours, base, theirs), strict=True):
            path.write_text(text, newline="")
        # -E: what both changed alike is no conflict.
        labels = [word for name in NAMES for word in ("-L", name)]
        argv = ["diff3", "--merge", "-E", *labels, *map(str, paths)]
        done = subprocess.run(argv, capture_output=True, check=False, text=True)
    if done.returncode not in (0, 1):
        raise BuildError(f"the files could not be merged: {done.stderr.strip() or 'diff3 failed'}")
    return done.stdout, done.returncode == 0
