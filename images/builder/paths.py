"""The paths a recipe may name."""

from __future__ import annotations


def refuse_path(path: str) -> str:
    """Why `path` is no absolute path of an image, or "" when it is one. `/` itself is one."""
    if not path.startswith("/"):
        return f"{path!r} is not absolute; start it with /"
    return "" if path == "/" else refuse_relative(path[1:])


def refuse_relative(path: str) -> str:
    """Why `path` is no path below a directory, or "" when it is one."""
    parts = path.split("/")
    if "" in parts or "." in parts or ".." in parts:
        return f"{path!r} has an empty part, '.' or '..'; write the path out"
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in path):
        return f"{path!r} has a control character"
    if len(path.encode(errors="replace")) > 4000 or any(len(part.encode(errors="replace")) > 255 for part in parts):
        return "the path is longer than a file system takes"
    return ""
