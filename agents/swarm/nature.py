"""How clients of a swarm misbehave: rates, drawn from one seed so that a run can be had again."""

import random
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Nature:
    """Each rate is a share of 1, of what it is named after."""

    fail: float = 0.0  # commands that the client cannot carry out
    duplicate: float = 0.0  # reports that are sent twice
    drop: float = 0.0  # polls whose connection breaks before the answer
    reboot: float = 0.0  # commands in the middle of which the PC boots anew
    verify: float = 1.0  # signatures of commands that are checked
    delay_s: float = 0.5  # the most that a cycle takes; each takes its own part of it
    skew_s: float = 0.0  # the most that a clock is off, either way

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 0 or (not field.name.endswith("_s") and value > 1):
                raise ValueError(
                    f"--{field.name.removesuffix('_s')} is {value:g}: a rate is 0 to 1, a time not negative."
                )

    def random_of(self, seed: int, number: int) -> random.Random:
        """The dice of one client."""
        return random.Random(f"{seed} {number}")  # noqa: S311 - to be had again, guards nothing
