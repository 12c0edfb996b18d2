from agents.models.commands import Command, CommandStatus, Order, Verb
from agents.models.restores import HomeRestore, RestoreResult
from agents.models.rollouts import Rollout, RolloutStatus
from agents.models.sessions import BootSession, BootToken, SessionStatus, Verdict

__all__ = [
    "BootSession",
    "BootToken",
    "Command",
    "CommandStatus",
    "HomeRestore",
    "Order",
    "RestoreResult",
    "Rollout",
    "RolloutStatus",
    "SessionStatus",
    "Verb",
    "Verdict",
]
