"""Packs a tree into a squashfs."""

from __future__ import annotations

from pathlib import Path

from images.builder.run import Runner

# 650 MB take two cores 3 to 5 s; a build may cost at most 1.15 times plain mmdebstrap and mksquashfs.
LEVEL = 3


def command(tree: Path, output: Path, epoch: int) -> list[str]:
    """The command that packs `tree` into `output`: the same bytes for the same tree.

    File times after `epoch` (s) are set back to it. Extended attributes are kept: file capabilities are some.
    """
    return [
        *("env", f"SOURCE_DATE_EPOCH={epoch}", "mksquashfs", str(tree), str(output)),
        *("-noappend", "-comp", "zstd", "-Xcompression-level", str(LEVEL), "-xattrs", "-no-exports"),
        *("-no-progress", "-quiet"),
    ]


def pack(tree: Path, output: Path, run: Runner, epoch: int) -> None:
    """Pack `tree` into the new file `output`, the reader of which is root on a client."""
    run(command(tree, output, epoch))
