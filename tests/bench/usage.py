"""What processes use, as the kernel counts it."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Seconds of processor time of ``pid`` and all below it, those that have ended included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = sum(int(ticks) for ticks in fields[11:15]) / _TICKS  # user and system time, its own and of ended children
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own + sum(_of_child(int(child)) for child in children)


def _of_child(pid: int) -> float:
    try:
        return cpu_s(pid)
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile, and its parent counts it
        return 0.0


def processors_s() -> tuple[float, float]:
    """Seconds since this host started that its processors had in all, and how many of them the host below gave to others (man 5 proc)."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks) / _TICKS, ticks[7] / _TICKS


def resident_mb(pid: int) -> float:
    """Megabytes of memory that ``pid`` alone holds at this moment."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0
