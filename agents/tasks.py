"""Celery's way in: fetch, call one function. ``send_*`` run in the sender, the rest in the default worker."""

from uuid import UUID

from celery import shared_task

from agents import campaigning, schedule, sending
from agents.models import Command
from fleet import logs


@shared_task
def send_order(order: str) -> None:
    with logs.about(order=order):
        sending.send(Command.objects.filter(order_id=order))


@shared_task
def send_due() -> None:
    """What a lost message left behind, and what caps, a freeze or a missing approval held back."""
    sending.send(Command.objects.all())


@shared_task
def tick() -> None:
    schedule.tick()


@shared_task
def step_campaign(campaign: str) -> None:
    with logs.about(order=campaign):
        campaigning.go_on(UUID(campaign))


@shared_task
def step_campaigns() -> None:
    campaigning.step()
