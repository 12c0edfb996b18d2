from django.apps import AppConfig


class ImagesConfig(AppConfig):
    name = "images"
    verbose_name = "Images"

    def ready(self) -> None:
        from fleet import alive
        from images import metrics, signatures  # noqa: F401 - metrics register themselves

        alive.register("builds", signatures.state)
