"""A note on the desktop: `notify.py <text> <milliseconds> <note to replace>` prints the new note's number.

It runs as the user, with the means there are, and asks the user's own programs: whatever these do, they cannot do it to root.
This module needs none of its siblings.
"""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys

SERVICE = ("org.freedesktop.Notifications", "/org/freedesktop/Notifications", "org.freedesktop.Notifications")
TITLE = "Stateless Fleet"


def bus() -> str:
    """The address of the session bus; '' where there is none. A desktop without systemd has it in its programs' environment."""
    path = f"/run/user/{os.getuid()}/bus"
    if os.path.exists(path):
        return f"unix:path={path}"
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as environ:  # only the user's own can be read
                found = re.search(rb"(?:^|\0)DBUS_SESSION_BUS_ADDRESS=([^\0]+)", environ.read(1 << 17))
        except OSError:
            continue
        if found:
            return os.fsdecode(found[1])
    return ""


def commands(text: str, milliseconds: str, replaced: str) -> list[list[str]]:
    """Programs that show a note, in the order to try them. Desktops take the text for markup, so that it must not be any."""
    body = html.escape(text, quote=False)
    note = ["susssasa{sv}i", TITLE, replaced, "", TITLE, body, "0", "0", milliseconds]
    return [
        ["busctl", "--user", "call", *SERVICE, "Notify", *note],
        ["notify-send", "--app-name", TITLE, "--expire-time", milliseconds, "--", TITLE, body],
    ]


def main(arguments: list[str]) -> int:
    if len(arguments) != 3:
        print("usage: notify.py <text> <milliseconds> <note to replace>", file=sys.stderr)
        return 2
    os.environ["DBUS_SESSION_BUS_ADDRESS"] = bus()
    if not os.environ["DBUS_SESSION_BUS_ADDRESS"]:
        return 1
    for command in commands(*arguments):
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        except OSError:
            continue
        if done.returncode == 0:
            print(*re.findall(r"\d+", done.stdout.decode("ascii", "replace"))[-1:])
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
