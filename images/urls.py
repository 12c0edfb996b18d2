"""The REST API's addresses of images."""

from rest_framework.routers import SimpleRouter

from images import api, finding_api, layer_api, merge_api

router = SimpleRouter()
router.register("images", api.ImageViewSet)
router.register("versions", api.VersionViewSet)
router.register("releases", api.ReleaseViewSet)
router.register("home-templates", api.HomeTemplateViewSet)
router.register("findings", finding_api.FindingViewSet)
router.register("merges", merge_api.MergeViewSet)
router.register("layers", layer_api.LayerViewSet)
router.register("layer-builds", layer_api.LayerBuildViewSet)
urlpatterns = router.urls
