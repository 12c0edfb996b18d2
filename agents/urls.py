from django.urls import path

from agents.board import views

urlpatterns = [
    path("", views.index, name="index"),
    path("sites/<slug:slug>/", views.board, name="board"),
    path("sites/<slug:slug>/events", views.events, name="board-events"),
]
