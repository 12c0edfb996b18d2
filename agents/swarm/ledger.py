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

    def verdict(self) -> dict[str, float | int]:
        """Of all commands since the swarm began: seconds from order to acceptance and to the end, and what must be 0.

        ``lost``: commands that never ended, or of which nobody knows how. ``twice``: carried out more than once. ``unaudited``: restores
        that a client made and no row tells of.
        """
        since = datetime.fromtimestamp(self.began, UTC)
        rows = Command.objects.filter(client__mac__startswith=PREFIX, queued_at__gte=since)
        commands = list(rows.values_list("pk", "status", "order__ordered_at", "accepted_at", "finished_at", "verb"))
        accepted = sorted((at - ordered).total_seconds() for _, _, ordered, at, _, _ in commands if at)
        ended = [(at - ordered).total_seconds() for _, _, ordered, _, at, _ in commands if at]
        told = {
            str(pk)
            for pk in HomeRestore.objects.filter(command__in=[row[0] for row in commands]).values_list(
                "command_id", flat=True
            )
        }
        mine = {str(row[0]) for row in commands if row[5] == Verb.CYCLE}
        return {
            "commands": len(commands),
            "accepted_p50_s": round(statistics.median(accepted), 3) if accepted else 0.0,
            "accepted_p99_s": round(accepted[int(len(accepted) * 0.99)], 3) if accepted else 0.0,
            "recorded_s": round(max(ended), 3) if ended else 0.0,
            "succeeded": sum(row[1] == CommandStatus.SUCCEEDED for row in commands),
            "lost": sum(row[1] in (*Command.OPEN, CommandStatus.LOST) for row in commands),
            "twice": sum(number > 1 for number in self.effects.values()),
            "unaudited": len((self.cycles & mine) - told),
        }


PREFIX = "02:5f:"  # of the MACs of swarms: locally administered, so that no card has one
