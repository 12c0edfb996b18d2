"""The volunteers' pages of sites, classes, rules and clients; everybody's API tokens; the audit log."""

from django.contrib import admin

from fleet.admin import clients, logs, people, places, tokens

__all__ = ["clients", "logs", "people", "places", "tokens"]

admin.site.site_header = admin.site.site_title = "Stateless Fleet"
admin.site.index_title = "Administration"
admin.site.site_url = None  # the board is linked by its name (templates/admin/base_site.html)
