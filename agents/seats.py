"""What people call a client, and in which order they read that."""

import re

from fleet.models import Client


def seat_of(client: Client) -> str:
    """What people call it."""
    return client.seat or client.name


def natural(text: str) -> list[tuple[bool, int, str]]:
    """A key to sort by: A2 before A10."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.findall(r"\d+|\D+", text)]
