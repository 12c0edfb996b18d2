"""What the clients of a swarm saw, against what the database says: latencies, and the verdict."""

import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

from agents.models import Command, CommandStatus, HomeRestore, Verb


@dataclass
class Ledger:
    """Times are this host's. ``effects`` counts how often each command was carried out."""

    began: float = field(default_factory=time.time)
    effects: Counter[str] = field(default_factory=Counter)
    cycles: set[str] = field(default_factory=set)  # those whose home was restored
    troubles: Counter[str] = field(default_factory=Counter)
    settled: int = 0  # commands of which the server has the end
    connected: int = 0
    boots: int = 0
    cold_start_s: float = 0.0  # from the first switched on to the last connected
    joined_at: float = 0.0  # when the last of them was connected, for the first time or again
    accepted_at: dict[str, float] = field(default_factory=dict)  # when the client knew that the server knows
    done_at: float = 0.0  # when the last of them had carried out what it was told
    known_at: float = 0.0  # when the last of them knew that the server has written that down

    def joined(self) -> None:
        self.connected += 1
        self.joined_at = time.time()

    def acknowledged(self, command: str) -> None:
        self.accepted_at.setdefault(command, time.time())

    def carried_out(self, command: str) -> None:
        self.effects[command] += 1
        self.done_at = time.time()

    def ended(self, command: str) -> None:
        self.settled += 1
        if command in self.effects:
            self.known_at = time.time()

    def verdict(self) -> dict[str, float | int]:
        """Of all commands since the swarm began: seconds from order to acceptance and to the end, and what must be 0.

        ``accepted_p50_s`` and ``accepted_p99_s`` end when the client knows that its acceptance is durable, ``recorded_s`` is from
        the last client's being done to the last one's knowing that its report is.
        ``lost``: commands that never ended, or of which nobody knows how. ``twice``: carried out more than once. ``unaudited``: restores
        that a client made and no row tells of.
        """
        since = datetime.fromtimestamp(self.began, UTC)
        rows = Command.objects.filter(client__mac__startswith=PREFIX, queued_at__gte=since)
        commands = list(rows.values_list("pk", "status", "order__ordered_at", "finished_at", "verb"))
        accepted = sorted(
            self.accepted_at[str(pk)] - ordered.timestamp()
            for pk, _, ordered, _, _ in commands
            if str(pk) in self.accepted_at
        )
        ended = [(at - ordered).total_seconds() for _, _, ordered, at, _ in commands if at]
        told = {str(key) for key in HomeRestore.objects.filter(command__in=rows).values_list("command_id", flat=True)}
        mine = {str(row[0]) for row in commands if row[4] == Verb.CYCLE}
        return {
            "commands": len(commands),
            "accepted_p50_s": round(statistics.median(accepted), 3) if accepted else 0.0,
            "accepted_p99_s": round(accepted[int(len(accepted) * 0.99)], 3) if accepted else 0.0,
            "recorded_s": round(max(0.0, self.known_at - self.done_at), 3),
            "ended_s": round(max(ended), 3) if ended else 0.0,
            "succeeded": sum(row[1] == CommandStatus.SUCCEEDED for row in commands),
            "lost": sum(row[1] in (*Command.OPEN, CommandStatus.LOST) for row in commands),
            "twice": sum(number > 1 for number in self.effects.values()),
            "unaudited": len((self.cycles & mine) - told),
        }


PREFIX = "02:5f:"  # of the MACs of swarms: locally administered, so that no card has one
