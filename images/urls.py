"""The REST API's addresses of images."""

from rest_framework.routers import SimpleRouter

from images import api

router = SimpleRouter()
router.register("images", api.ImageViewSet)
router.register("versions", api.VersionViewSet)
router.register("releases", api.ReleaseViewSet)
router.register("home-templates", api.HomeTemplateViewSet)
urlpatterns = router.urls
