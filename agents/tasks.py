"""Celery's way in: fetch, call one function. ``send_*`` run in the sender, the rest in the default worker."""

from celery import shared_task

from agents import schedule, sending
from agents.models import Command, CommandStatus
from agents.power import pressing


@shared_task
def send_order(order: str) -> None:
    sending.send(
        Command.objects.filter(order_id=order, status=CommandStatus.QUEUED).select_related("client", "order__site")
    )
    pressing.press_due()


@shared_task
def send_due() -> None:
    """What a lost message left behind."""
    sending.send(Command.objects.filter(status=CommandStatus.QUEUED).select_related("client", "order__site")[:500])
    pressing.press_due()


@shared_task
def tick() -> None:
    schedule.tick()
