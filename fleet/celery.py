"""The Celery application. Three kinds of worker: ``default`` (clock work), ``builds``, and ``sender``, which alone signs."""

import ctypes
import logging
import os
import signal
import time
from contextlib import suppress
from typing import Any

import redis
from celery import Celery
from celery.signals import (
    before_task_publish,
    setup_logging,
    task_postrun,
    task_prerun,
    worker_process_init,
    worker_ready,
)

from fleet import alive, garbage, logs

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fleet.settings")
app = Celery("fleet")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

_PR_SET_PDEATHSIG = 1  # prctl(2)


@worker_process_init.connect
def die_with_the_worker(**_: Any) -> None:
    """A pool process must not go on building after its worker was killed with SIGKILL: nobody would own the version."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@worker_ready.connect
def keep_what_has_begun(**_: Any) -> None:
    garbage.settle()


@setup_logging.connect
def as_everywhere(loglevel: int | None = None, **_: Any) -> None:
    """Settings say how lines look. ``--loglevel`` is for Celery's own words; it leaves ours alone."""
    for name in ("celery", "kombu"):
        logging.getLogger(name).setLevel(loglevel or logging.WARNING)


@before_task_publish.connect
def hand_over_what_it_is_about(headers: dict[str, Any], **_: Any) -> None:
    """``at``, in seconds since 1970, is how old the oldest message of a queue is (fleet.metrics)."""
    headers["fleet"] = {"about": logs.carried(), "at": time.time()}


@task_prerun.connect
def take_up_what_it_is_about(task: Any, **_: Any) -> None:
    sent = task.request.get("fleet") or {}
    logs.begin({**sent.get("about", {}), "task": task.name})


@task_postrun.connect
def be_done_with_it(task: Any, state: str, **_: Any) -> None:
    logs.begin({})
    with suppress(redis.RedisError):
        alive.count_task(task.name, "succeeded" if state == "SUCCESS" else "failed")
