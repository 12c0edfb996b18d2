from django.apps import AppConfig


class AgentsConfig(AppConfig):
    name = "agents"
    verbose_name = "Agents"

    def ready(self) -> None:
        from agents import metrics, sending  # noqa: F401 - metrics register themselves
        from agents.holding import running
        from fleet import alive
        from images import keeping

        keeping.register(running)
        alive.register("sender", sending.state)
