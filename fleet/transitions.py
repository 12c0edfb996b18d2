"""The one way a status changes: a conditional UPDATE whose row count is the lock."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from django.db import models

from fleet.exceptions import WrongState


class Moving(Protocol):
    """A model whose ``status`` moves along ``TRANSITIONS``: to each status, the statuses it may come from."""

    TRANSITIONS: Mapping[str, Sequence[str]]
    status: Any
    pk: Any

    def get_status_display(self) -> str: ...


def move(record: Moving, to: models.TextChoices, /, **changes: Any) -> None:
    """Set ``record.status`` to ``to`` and ``changes`` with it, if the row still is where it may come from.

    Raises WrongState, naming the thing, what was asked and what it is, when another process moved it first or the step is
    not allowed. Two processes that move the same row: exactly one succeeds.
    """
    model = type(record)
    assert isinstance(record, models.Model)
    rows = model._default_manager.filter(  # type: ignore[attr-defined]
        pk=record.pk, status__in=list(record.TRANSITIONS.get(to.value, ()))
    ).update(status=to, **changes)
    record.refresh_from_db()
    if rows == 0:
        raise WrongState(
            f"{record} cannot become {str(to.label).lower()}: it is {record.get_status_display().lower()}.",
            hint="Reload the page to see its present state.",
        )


def status_constraint(choices: type[models.TextChoices], name: str, field: str = "status") -> models.CheckConstraint:
    """A status nobody declared cannot be stored, so a test cannot lie about one."""
    return models.CheckConstraint(condition=models.Q(**{f"{field}__in": choices.values}), name=name)
