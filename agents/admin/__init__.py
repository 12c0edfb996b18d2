"""Orders, and what became of them, in the admin; the orders that the page of clients offers."""

from agents.admin import campaigns, caps, clients, orders, power, releases, restores, sessions

__all__ = ["campaigns", "caps", "clients", "orders", "power", "releases", "restores", "sessions"]
