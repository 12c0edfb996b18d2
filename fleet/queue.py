"""The one way work reaches Celery: after the commit, and never as the only trace of it.

The database row is the truth and the message a hint. If Redis is away the message is lost, which costs a delay: the clock
finds the row at its next tick.
"""

import logging
from typing import Any

from celery import Task
from django.db import transaction
from kombu.exceptions import OperationalError

log = logging.getLogger(__name__)


def enqueue(task: "Task[..., Any]", *args: Any) -> None:
    """Send ``task`` once the present transaction is committed; a broker that is away is logged, not raised."""

    def send() -> None:
        try:
            task.apply_async(args=args, retry=False)
        except OperationalError as error:
            log.warning("Redis is away, so %s%r waits for the clock's next tick: %s", task.name, args, error)

    transaction.on_commit(send)
