from fleet.models.audit import AuditEntry, AuditHead
from fleet.models.clients import (
    Admission,
    Client,
    ClientClass,
    ClientState,
    Colour,
    HardwareRule,
    HomeKind,
    RootCheck,
    RootFetch,
    RootKind,
)
from fleet.models.logins import FailedLogin
from fleet.models.sites import Membership, Site, UnknownHardware
from fleet.models.tokens import ApiToken, token_hash

__all__ = [
    "Admission",
    "ApiToken",
    "AuditEntry",
    "AuditHead",
    "Client",
    "ClientClass",
    "ClientState",
    "Colour",
    "FailedLogin",
    "HardwareRule",
    "HomeKind",
    "Membership",
    "RootCheck",
    "RootFetch",
    "RootKind",
    "Site",
    "UnknownHardware",
    "token_hash",
]
