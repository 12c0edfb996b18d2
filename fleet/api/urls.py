"""The REST API's addresses of what fleet knows."""

from django.urls import path
from rest_framework.routers import SimpleRouter

from fleet.api import resources

router = SimpleRouter()
router.register("sites", resources.SiteViewSet)
router.register("classes", resources.ClassViewSet)
router.register("rules", resources.RuleViewSet)
router.register("clients", resources.ClientViewSet)
router.register("audit", resources.AuditViewSet, basename="audit")
router.register("tokens", resources.TokenViewSet)
urlpatterns = [path("me/", resources.Me.as_view(), name="me"), *router.urls]
