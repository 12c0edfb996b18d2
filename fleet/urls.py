"""Addresses of the web process. Other apps are named only by string."""

from django.contrib import admin
from django.contrib.auth import views as auth
from django.urls import include, path
from drf_spectacular.views import SpectacularAPIView

from fleet.api.problems import NoResource

urlpatterns = [
    path("login/", auth.LoginView.as_view(), name="login"),
    path("logout/", auth.LogoutView.as_view(), name="logout"),
    path("admin/", admin.site.urls),
    path("api/v1/", include("fleet.api.urls")),
    path("api/v1/", include("images.urls")),
    path("api/v1/", include("agents.api.urls")),
    path("api/v1/<path:path>", NoResource.as_view()),
    path("api/schema/", SpectacularAPIView.as_view(), name="schema"),
    path("", include("agents.urls")),
]
