"""A person of this host, without rights, who builds an image."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def person() -> Iterator[tuple[list[str], Path]]:
    """Words before a command that make it a person's without rights, and a directory that person owns."""
    name = f"fleet-test-{os.getpid()}"
    subprocess.run(["useradd", "--create-home", name], check=True)
    try:
        user = pwd.getpwnam(name)
        home = Path(user.pw_dir)
        drop = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--"]
        yield [*drop, "env", f"HOME={home}"], home
        shutil.rmtree(home)
    finally:
        subprocess.run(["userdel", name], check=True)
