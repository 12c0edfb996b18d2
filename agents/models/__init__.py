from agents.models.campaigns import Campaign, CampaignStatus, Offline, OnFailure, Target, TargetStatus, WaveBy
from agents.models.caps import Cap, Freeze
from agents.models.commands import Command, CommandQuerySet, CommandStatus, Order, Verb
from agents.models.envelopes import Envelope, args_of
from agents.models.power import PortKind, PowerPort, Wake, Way
from agents.models.restores import HomeRestore, RestoreResult
from agents.models.rollouts import Rollout, RolloutStatus
from agents.models.sessions import BootSession, BootToken, SessionStatus, Verdict

__all__ = [
    "BootSession",
    "BootToken",
    "Campaign",
    "CampaignStatus",
    "Cap",
    "Command",
    "CommandQuerySet",
    "CommandStatus",
    "Envelope",
    "Freeze",
    "HomeRestore",
    "Offline",
    "OnFailure",
    "Order",
    "PortKind",
    "PowerPort",
    "RestoreResult",
    "Rollout",
    "RolloutStatus",
    "SessionStatus",
    "Target",
    "TargetStatus",
    "Verb",
    "Verdict",
    "Wake",
    "WaveBy",
    "Way",
    "args_of",
]
