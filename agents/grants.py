"""What each process may do to the database: on PostgreSQL each has a user of its own, with no more rights than its work needs.

So whoever takes over the web process cannot change or remove what the audit log holds, nor write what only the sender writes, with its
database either. ``statements`` are SQL to be run by the owner of the database after each upgrade: what is new is in it.

SQLite knows no users. There the chains of the audit log, what the sender signs of them, and its book show what was done.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from django.apps import apps
from django.db import connection, models

PREFIX = "fleet_"
PROCESSES = ("web", "gateway", "sender", "builds")  # the clock and the worker of everyday run as the web process does


@dataclass(frozen=True)
class Rights:
    """On one table. ``update`` names columns; ALL is every column but those of NOT_WEB."""

    insert: bool = False
    update: tuple[str, ...] = ()
    delete: bool = False


ALL = ("*",)
NONE = Rights()
FULL = Rights(insert=True, update=ALL, delete=True)
APPEND = Rights(insert=True)
GROW = Rights(insert=True, update=ALL)

# What the web process lacks; it may write everything else.
WEB: dict[str, Rights] = {
    "fleet.AuditEntry": APPEND,
    "fleet.AuditHead": GROW,
    "fleet.AuditCheckpoint": NONE,
    "agents.HomeRestore": APPEND,
    "agents.Command": GROW,
    "agents.Envelope": NONE,
    "contenttypes.ContentType": NONE,
    "auth.Permission": NONE,
}
# The sender's own columns, within what others may change.
NOT_WEB = {
    "agents.Command": ("client", "order", "verb", "args", "sent_at"),
}
# A command is born waiting: only the sender makes anything else of it.
UNSIGNED = "status = 'queued'"

OBSERVED = ("state", "since", "last_seen", "trouble", "adapters", "memory_kib", "product", "serial", "client_class")
REPORTED = ("network", "hold_reason", "hold_until", "twin_at")
OTHERS: dict[str, dict[str, Rights]] = {
    "gateway": {
        "agents.BootToken": FULL,
        "agents.BootSession": GROW,
        "agents.Command": Rights(
            update=("status", "accepted_at", "acts_at", "finished_at", "expires_at", "reason", "result")
        ),
        "agents.HomeRestore": APPEND,
        "agents.Wake": Rights(update=("dealt", "sent_at")),
        "fleet.Client": Rights(insert=True, update=(*OBSERVED, *REPORTED)),
        "fleet.AuditEntry": APPEND,
        "fleet.AuditHead": GROW,
        "images.Finding": GROW,
        "images.Finding_clients": Rights(insert=True, delete=True),
        "images.ImageVersion": Rights(update=("sent_at",)),  # to lock one while findings are added to it
        "images.HomeTemplate": APPEND,
    },
    "sender": {
        "agents.Command": Rights(
            insert=True,
            update=("status", "sent_at", "accepted_at", "finished_at", "expires_at", "reason", "result"),
        ),
        "agents.Envelope": APPEND,
        "agents.Wake": Rights(insert=True, update=("rounds", "next_at", "dealt", "sent_at", "trouble")),
        "agents.Wake_relays": APPEND,
        "fleet.Client": Rights(update=("last_seen",)),  # to lock those that it wakes
        "fleet.AuditEntry": APPEND,
        "fleet.AuditHead": GROW,
        "fleet.AuditCheckpoint": APPEND,
    },
    "builds": {
        "images.*": FULL,
        "fleet.AuditEntry": APPEND,
        "fleet.AuditHead": GROW,
    },
}
# Read by the web process alone: who is logged in, who may log in by which token.
PRIVATE = ("fleet.ApiToken", "fleet.FailedLogin", "sessions.Session", "admin.LogEntry")


def rights_of(process: str, model: type[models.Model]) -> Rights:
    """What a process may do to the rows of a model, beside reading them."""
    label = model._meta.label
    if process == "web":
        return WEB.get(label, FULL)
    return OTHERS[process].get(label) or OTHERS[process].get(f"{model._meta.app_label}.*", NONE)


def may_read(process: str, model: type[models.Model]) -> bool:
    return process == "web" or model._meta.label not in PRIVATE


def statements() -> Iterator[str]:
    """SQL that gives each process's user its rights and takes all others away; it may be run again and again."""
    quote = connection.ops.quote_name
    database = quote(str(connection.settings_dict["NAME"]))
    every = sorted(apps.get_models(include_auto_created=True), key=lambda model: model._meta.db_table)
    for process in PROCESSES:
        user = quote(PREFIX + process)
        yield f"DO $$ BEGIN CREATE ROLE {user} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
        yield f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {user}"
        yield f"GRANT CONNECT ON DATABASE {database} TO {user}"
        yield f"GRANT USAGE ON SCHEMA public TO {user}"
        yield f"GRANT SELECT ON django_migrations TO {user}"
        for model in every:
            if granted := ", ".join(_granted(process, model)):
                yield f"GRANT {granted} ON {quote(model._meta.db_table)} TO {user}"
    table, policies = quote("agents_command"), [("readable", "SELECT", "USING (true)")]
    policies += [("changed", "UPDATE", "USING (true)"), ("removed", "DELETE", "USING (true)")]
    yield f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"
    web, sender = quote(f"{PREFIX}web"), quote(f"{PREFIX}sender")
    for name, action, rule in [
        *policies,
        ("born_unsigned", "INSERT", f"WITH CHECK ({UNSIGNED})"),
        ("born_at_the_sender", "INSERT", "WITH CHECK (true)"),
    ]:
        whom = {"born_unsigned": web, "born_at_the_sender": sender}.get(name, "PUBLIC")
        yield f"DROP POLICY IF EXISTS {name} ON {table}"
        yield f"CREATE POLICY {name} ON {table} FOR {action} TO {whom} {rule}"


def _granted(process: str, model: type[models.Model]) -> Iterator[str]:
    rights = rights_of(process, model)
    if may_read(process, model):
        yield "SELECT"
    if rights.insert:
        yield "INSERT"
    if rights.delete:
        yield "DELETE"
    columns = list(_columns(process, model, rights))
    if columns == [field.column for field in model._meta.concrete_fields]:
        yield "UPDATE"
    elif columns:
        yield f"UPDATE ({', '.join(map(connection.ops.quote_name, columns))})"


def _columns(process: str, model: type[models.Model], rights: Rights) -> Iterator[str]:
    barred = NOT_WEB.get(model._meta.label, ()) if process == "web" else ()
    if rights.update != ALL:
        known = {field.name for field in model._meta.concrete_fields}
        assert known >= set(rights.update), f"{model._meta.label} has no {sorted(set(rights.update) - known)}"
    for field in model._meta.concrete_fields:
        if field.name not in barred and (rights.update == ALL or field.name in rights.update):
            yield str(field.column)
