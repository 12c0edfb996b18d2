"""A cycle: end the session, give the home back as its template has it, log the user in again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from . import home as program
from .leftovers import Leftovers
from .overlay import Home
from .session import Session, Stuck


class Cycle:
    """One run. `result` fills as it goes, so that a failure too is reported with all that was measured."""

    def __init__(
        self, home: Home, session: Session, args: dict[str, Any], fetch: Callable[[str, int, str], None]
    ) -> None:
        self.home, self.session, self.args, self.fetch = home, session, args, fetch
        self.leftovers = Leftovers(session.user, session.uid)
        self.phases: dict[str, int] = {}
        self.result: dict[str, Any] = {
            "phases_ms": self.phases,
            "template": args["home"],
            "expected": args["home_digest"],
            "before": "",
            "after": "",
            "files": None,
            "bytes": None,
            "killed": 0,
            "session": "",
        }
        self.discarded: list[int] = []
        self.started = self.last = time.monotonic()

    def phase(self, name: str) -> None:
        now = time.monotonic()
        self.phases[name] = round((now - self.last) * 1000)
        self.phases["total"] = round((now - self.started) * 1000)
        self.last = now

    def run(self) -> None:
        """As far as the new session. After a failure the login stays held: better nobody than somebody's data.

        The old home is there until the new one is known to be good. Whoever is killed meanwhile begins anew, and with the same end.
        """
        self.home.prepare(self.args["home"], self.args["home_bytes"], self.fetch)
        if self.home.digest != self.args["home_digest"]:
            raise Stuck("The template does not have the digest that was ordered; nothing was done.")
        self.started = self.last = time.monotonic()
        before = self.session.logins()
        self.session.hold(True)
        killed = self.session.kill()
        self.leftovers.sweep()
        self.phase("kill")
        self.home.restore()
        self.phase("restore")
        self.result["killed"] = killed + self.session.kill_by_uid()  # cron may just have been about to
        self.result["after"] = self.home.measure()
        self.phase("verify")
        if self.result["after"] != self.args["home_digest"]:
            raise Stuck("The restored home does not have the digest of its template; a restart makes it anew.")
        self.discarded = self.home.swap()
        self.phase("unmount")
        self.result["session"] = self.session.login(before)
        self.phase("login")

    def account(self) -> dict[str, Any]:
        """Measure what was thrown away, then let go of it: by a process of its own, for the next user is at work.

        Nothing is claimed where there was no home to throw away: an interrupted cycle had done so already.
        """
        try:
            if not self.discarded:
                return {}
            paths = [f"/proc/self/fd/{fd}" for fd in self.discarded]
            command = [sys.executable, "-E", "-s", "-S", program.__file__, "account", *paths]
            counted = subprocess.run(command, pass_fds=self.discarded, stdout=subprocess.PIPE, check=False).stdout
            return dict(json.loads(counted))
        finally:
            for fd in self.discarded:
                os.close(fd)
            self.leftovers.empty_trash()
            self.home.forget_others()
