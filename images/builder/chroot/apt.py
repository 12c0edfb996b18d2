"""The host's apt on a tree that it must not touch but by dpkg, which runs inside."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
from collections.abc import Callable
from pathlib import Path

from images.builder.chroot import inside
from images.builder.chroot.sources import Source
from images.builder.run import Runner

DOCUMENTS = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/lintian/*",
)
# What apt calls in place of dpkg. Paths of archives lose the way to the tree; descriptors (--status-fd) are inherited.
_DPKG = """\
#!/bin/sh
for word in "$@"; do
    shift
    set -- "$@" "${{word#{tree}}}"
done
exec {enter} dpkg "$@"
"""


class Apt:
    """The host's apt-get on a tree: `apt("install", "tmux")`."""

    def __init__(self, listed: list[Source], tree: Path, cache: Path, run: Runner) -> None:
        self._run = run
        self._tree = tree
        place = tree.with_name("apt")
        self._lists = cache / hashlib.sha256("\n".join(map(str, listed)).encode()).hexdigest()[:16] / "lists"
        for directory in (place / "sources.d", place / "empty", self._lists / "partial"):
            directory.mkdir(parents=True, exist_ok=True)
        (tree / "var/cache/apt/archives/partial").mkdir(parents=True, exist_ok=True)
        (place / "sources.d/recipe.sources").write_text("\n".join(map(str, listed)))
        dpkg = place / "dpkg"
        dpkg.write_text(_DPKG.format(enter=shlex.join(inside.entering(tree)), tree=shlex.quote(str(tree))))
        dpkg.chmod(0o755)
        options = {
            "Dir": f"{tree}/",
            # The host's own settings stay the host's: its hooks after dpkg, for one, are for itself.
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": f"{place}/empty",
            "Dir::Etc::SourceList": "/dev/null",
            "Dir::Etc::SourceParts": f"{place}/sources.d",
            "Dir::Etc::Trusted": "/etc/apt/trusted.gpg",
            "Dir::Etc::TrustedParts": "/etc/apt/trusted.gpg.d",
            "Dir::State::Lists": str(self._lists),
            "Dir::Cache": f"{self._lists.parent}/",
            "Dir::Cache::archives": f"{tree}/var/cache/apt/archives",
            "Dir::Log": f"{place}/empty",
            "Dir::Bin::dpkg": str(dpkg),
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",  # the lists are below a directory that only root reads
            "Acquire::Languages": "none",
        }
        lines = [f'{name} "{value}";' for name, value in options.items()]
        chosen = (*DOCUMENTS, "force-unsafe-io", "force-confdef", "force-confold")
        lines += [f'DPkg::Options:: "--{option}";' for option in chosen]
        # Else apt would ask dpkg some twenty times for what does not change.
        database = ["dpkg", f"--admindir={tree / 'var/lib/dpkg'}"]
        known = [
            *run(["dpkg", "--print-architecture"]).split(),
            *run([*database, "--print-foreign-architectures"]).split(),
        ]
        lines += [f'APT::Architectures:: "{architecture}";' for architecture in known]
        lines += proxies(run)
        (place / "apt.conf").write_text("\n".join(lines) + "\n")
        self._argv = ["env", f"APT_CONFIG={place}/apt.conf", "apt-get", "--yes", "--quiet"]

    def __call__(self, *words: str, watch: Callable[[str], object] | None = None) -> None:
        # Builds side by side have these lists in common; apt does not wait for their lock, so we do.
        lock = os.open(self._lists, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with inside.no_services(self._tree):
                self._run([*self._argv, *words], watch=watch)
        finally:
            os.close(lock)


def proxies(run: Runner) -> list[str]:
    """The host's proxies for apt, which reads none of the host's apt.conf here."""
    names = ("Acquire::http::Proxy", "Acquire::https::Proxy")
    lines = run(["apt-config", "dump", *names]).splitlines()
    return [line for line in lines if line.startswith(names) and not line.endswith('"";')]
