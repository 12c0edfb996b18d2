"""How far a campaign is, as bars: one of all its clients and one of each wave. Two queries, however many clients."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property

from django.db.models import Count

from agents.models import Campaign, CommandStatus, Target, TargetStatus
from agents.seats import seat_of

MOST_FATES = 200  # PCs named one by one
FAILED = (TargetStatus.FAILED, TargetStatus.REFUSED, TargetStatus.LOST, TargetStatus.EXPIRED)
# From left to right: what is over, what went wrong, what is on its way, what is still to come.
_STEPS: dict[str, str] = {
    status.value: str(status.label)
    for status in (
        TargetStatus.SUCCEEDED,
        *FAILED,
        TargetStatus.CANCELLED,
        TargetStatus.SKIPPED,
        CommandStatus.ACCEPTED,
        CommandStatus.SENT,
        CommandStatus.QUEUED,
        TargetStatus.WAITING,
    )
}
_OPEN = (CommandStatus.ACCEPTED, CommandStatus.SENT, CommandStatus.QUEUED, TargetStatus.WAITING)


@dataclass(frozen=True)
class Piece:
    """So many clients in one status, and their place in the bar in percent of it."""

    status: str
    word: str
    number: int
    start: float
    percent: float


@dataclass(frozen=True)
class Bar:
    """Of the clients counted by status; of wave 0 for all of them."""

    wave: int
    counts: Counter[str]

    @property
    def name(self) -> str:
        return f"Wave {self.wave}" if self.wave else "All"

    @property
    def total(self) -> int:
        return self.counts.total()

    @property
    def ended(self) -> int:
        return self.total - sum(self.counts[status] for status in _OPEN)

    @cached_property
    def pieces(self) -> list[Piece]:
        found, start = [], 0.0
        for status, word in _STEPS.items():
            if number := self.counts[status]:
                percent = 100 * number / self.total
                found.append(Piece(status, word, number, round(start, 3), round(percent, 3)))
                start += percent
        return found

    @property
    def told(self) -> str:
        """For who does not see it: ``40 succeeded, 2 failed, 8 waiting``."""
        return ", ".join(f"{piece.number} {piece.word.lower()}" for piece in self.pieces)


@dataclass(frozen=True)
class Fate:
    """A client that did not do what was asked, and why."""

    called: str
    wave: int
    status: str
    status_word: str
    reason: str


@dataclass(frozen=True)
class Progress:
    everyone: Bar
    waves: list[Bar]
    fates: list[Fate]

    @property
    def more_fates(self) -> int:
        return max(0, sum(self.everyone.counts[status] for status in FAILED) - len(self.fates))


def read_progress(campaign: Campaign) -> Progress:
    """Whoever is ordered counts as what its command is: queued, sent or accepted."""
    waves: dict[int, Counter[str]] = defaultdict(Counter)
    rows = Target.objects.filter(campaign=campaign).order_by().values_list("wave", "status", "command__status")
    for wave, status, command, number in rows.annotate(Count("pk")):
        waves[wave][command if status == TargetStatus.ORDERED else status] += number
    bars = [Bar(wave, waves[wave]) for wave in sorted(waves)]
    return Progress(Bar(0, sum(waves.values(), Counter())), bars, _fates(campaign))


def _fates(campaign: Campaign) -> list[Fate]:
    failed = Target.objects.filter(campaign=campaign, status__in=FAILED).select_related("client")
    return [
        Fate(seat_of(target.client), target.wave, target.status, target.get_status_display(), target.reason)
        for target in failed.only("wave", "status", "reason", "client__seat", "client__name")[:MOST_FATES]
    ]
