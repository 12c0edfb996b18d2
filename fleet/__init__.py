"""Sites, people and machines, and the wiring of the project."""

from fleet.celery import app as celery_app

__all__ = ["celery_app"]
