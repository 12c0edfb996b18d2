"""The Celery application. Three kinds of worker: ``default`` (clock work), ``builds``, and ``sender``, which alone signs."""

import ctypes
import os
import signal
from typing import Any

from celery import Celery
from celery.signals import worker_process_init

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fleet.settings")
app = Celery("fleet")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

_PR_SET_PDEATHSIG = 1  # prctl(2)


@worker_process_init.connect
def die_with_the_worker(**_: Any) -> None:
    """A pool process must not go on building after its worker was killed with SIGKILL: nobody would own the version."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
