"""Celery's way in: fetch, call one function. ``send_*`` run in the sender, the rest in the default worker."""

from uuid import UUID

from celery import shared_task

from agents import campaigning, schedule, sending, witnessing
from agents.models import Command
from agents.power import pressing
from fleet import logs


@shared_task
def send_order(order: str) -> None:
    with logs.about(order=order):
        sending.send(Command.objects.filter(order_id=order))
        pressing.press_due()


@shared_task
def send_due() -> None:
    """What a lost message left behind, and what caps, a freeze or a missing approval held back."""
    sending.send(Command.objects.all())
    pressing.press_due()


@shared_task
def send_checkpoints() -> None:
    """Signed heads of the audit log: in the sender, which alone has the key."""
    witnessing.witness()


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
