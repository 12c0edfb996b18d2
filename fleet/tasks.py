"""Celery's way in: fetch, call one function."""

from celery import shared_task

from fleet import health


@shared_task(ignore_result=True)
def say_alive(queue: str) -> None:
    health.say_alive(queue)
