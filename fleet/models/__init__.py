from fleet.models.audit import AuditCheckpoint, AuditEntry, AuditHead
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
    Tag,
    row_of,
)
from fleet.models.logins import FailedLogin
from fleet.models.sites import Membership, Site, UnknownHardware
from fleet.models.tokens import ApiToken, token_hash

__all__ = [
    "Admission",
    "ApiToken",
    "AuditCheckpoint",
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
    "Tag",
    "UnknownHardware",
    "row_of",
    "token_hash",
]
