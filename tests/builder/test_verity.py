"""The hash tree, held against the tool of the kernel's own people."""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path

import pytest

from images.builder.verity import BLOCK, seal

SIZES = [1, BLOCK - 1, BLOCK, 64 * BLOCK, 64 * BLOCK + 1, 300 * BLOCK + 17, 65 * 64 * BLOCK]


@pytest.mark.parametrize("size", SIZES)
def test_veritysetup_makes_the_same_tree(tmp_path: Path, size: int) -> None:
    image, data, tree = tmp_path / "image", tmp_path / "data", tmp_path / "tree"
    content = random.Random(size).randbytes(size)
    image.write_bytes(content)
    data.write_bytes(content.ljust(-(-size // BLOCK) * BLOCK, b"\0"))
    verity = seal(image)
    said = subprocess.run(
        ["veritysetup", "format", "--no-superblock", "--salt=-", "--hash=blake2b-512", str(data), str(tree)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert f"Root hash:      \t{verity.root_hash}" in said
    assert re.search(rf"Data blocks:\s+{verity.blocks}\n", said)
    assert image.read_bytes() == data.read_bytes() + tree.read_bytes()


@pytest.mark.parametrize("at", [0, 5000, 128 * BLOCK + 3])
def test_one_bit_changes_the_root_hash(tmp_path: Path, at: int) -> None:
    content = bytearray(random.Random(1).randbytes(200 * BLOCK))
    (tmp_path / "straight").write_bytes(content)
    content[at] ^= 1
    (tmp_path / "bent").write_bytes(content)
    assert seal(tmp_path / "straight").root_hash != seal(tmp_path / "bent").root_hash
