"""The REST API's addresses of orders and what became of them."""

from rest_framework.routers import SimpleRouter

from agents.api import power, resources
from agents.api.campaigns import CampaignViewSet
from agents.api.rollouts import RolloutViewSet

router = SimpleRouter()
router.register("orders", resources.OrderViewSet)
router.register("commands", resources.CommandViewSet)
router.register("campaigns", CampaignViewSet)
router.register("rollouts", RolloutViewSet)
router.register("wakes", power.WakeViewSet)
router.register("power-ports", power.PowerPortViewSet)
router.register("sessions", resources.SessionViewSet)
router.register("restores", resources.RestoreViewSet)
urlpatterns = router.urls
