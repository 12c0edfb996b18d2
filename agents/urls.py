from django.urls import path

from agents.board import campaigns, freezes, ordering, views

urlpatterns = [
    path("", views.index, name="index"),
    path("favicon.ico", views.favicon, name="favicon"),
    path("sites/<slug:slug>/", views.board, name="board"),
    path("sites/<slug:slug>/events", views.events, name="board-events"),
    path("sites/<slug:slug>/orders", ordering.orders, name="board-orders"),
    path("sites/<slug:slug>/orders/<uuid:order>/cancel", ordering.cancel, name="board-cancel"),
    path("sites/<slug:slug>/rollouts/<int:client_class>", ordering.rollout, name="board-rollout"),
    path("sites/<slug:slug>/rollouts/<uuid:row>/stop", ordering.stop_rollout, name="board-rollout-stop"),
    path("sites/<slug:slug>/campaigns/", campaigns.all_of, name="board-campaigns"),
    path("sites/<slug:slug>/campaigns/<uuid:campaign>/", campaigns.campaign, name="board-campaign"),
    path("sites/<slug:slug>/campaigns/<uuid:campaign>/<slug:what>", campaigns.act, name="board-campaign-act"),
    path("sites/<slug:slug>/freeze", freezes.freeze, name="board-freeze"),
    path("sites/<slug:slug>/freeze/lift", freezes.lift, name="board-lift"),
]
