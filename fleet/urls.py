"""Addresses of the web process. Other apps are named only by string."""

from django.contrib import admin
from django.contrib.auth import views as auth
from django.urls import include, path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularAPIView

from fleet.api import schema  # noqa: F401 - registers itself: only who serves the API needs it, and the gateway is to stay small
from fleet.api.problems import NoResource
from fleet.health import healthz
from fleet.logins import LoginForm
from fleet.metrics import metrics

urlpatterns = [
    path("healthz", healthz, name="healthz"),
    path("metrics", metrics, name="metrics"),
    path("login/", auth.LoginView.as_view(authentication_form=LoginForm), name="login"),
    path("logout/", auth.LogoutView.as_view(), name="logout"),
    # One door, with one look and one lock.
    path("admin/login/", RedirectView.as_view(pattern_name="login", query_string=True)),
    path("admin/", admin.site.urls),
    path("api/v1/", include("fleet.api.urls")),
    path("api/v1/", include("images.urls")),
    path("api/v1/", include("agents.api.urls")),
    path("api/v1/<path:path>", NoResource.as_view()),
    path("api/schema/", SpectacularAPIView.as_view(), name="schema"),
    path("", include("agents.urls")),
]
