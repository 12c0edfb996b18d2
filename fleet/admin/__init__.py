"""The volunteers' pages of sites, classes, rules and clients; everybody's API tokens; the audit log."""

from fleet.admin import clients, logs, people, places, tokens

__all__ = ["clients", "logs", "people", "places", "tokens"]
