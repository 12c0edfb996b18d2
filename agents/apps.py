from django.apps import AppConfig


class AgentsConfig(AppConfig):
    name = "agents"
    verbose_name = "Agents"

    def ready(self) -> None:
        from agents import metrics  # noqa: F401 - registers itself
        from agents.holding import running
        from images import keeping

        keeping.register(running)
