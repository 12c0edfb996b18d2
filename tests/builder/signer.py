"""Somebody who signs packages."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tests.builder.rpms import run


def _unless_gone(_: object, path: str, why: tuple[type[BaseException], BaseException, object]) -> None:
    if not isinstance(why[1], FileNotFoundError):
        raise why[1]


class Signer:
    """Somebody with a key: `public` is the text that others know it by."""

    def __init__(self, name: str) -> None:
        """Use as a context: the key is made when it is entered, and gone when it is left."""
        self.name = name
        self.public = ""

    def __enter__(self) -> Signer:
        self._home = tempfile.mkdtemp(prefix="gpg-")  # a short path: gpg-agent's socket lies in it
        quiet = ("--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "")
        self._gpg(*quiet, "--quick-generate-key", self.name, "rsa2048", "sign", "never")
        self.public = self._gpg("--armor", "--export", self.name)
        return self

    def __exit__(self, *_: object) -> None:
        run("gpgconf", "--homedir", self._home, "--kill", "all")  # which does not wait: its sockets go meanwhile
        shutil.rmtree(self._home, onerror=_unless_gone)

    def sign_text(self, source: Path, target: Path) -> None:
        """Write the text of `source` with its signature to `target`."""
        self._gpg("--batch", "--quiet", "--clearsign", "--output", str(target), str(source))

    def sign(self, packages: Path) -> None:
        """Sign all rpm packages in a directory; its metadata is to be renewed."""
        defined = (
            "--define",
            "__gpg /usr/bin/gpg",
            "--define",
            f"_gpg_path {self._home}",
            "--define",
            f"_gpg_name {self.name}",
        )
        run("rpmsign", *defined, "--addsign", *packages.glob("*.rpm"))

    def _gpg(self, *words: str) -> str:
        return run("gpg", "--homedir", self._home, *words)
