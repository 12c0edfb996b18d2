from rest_framework.pagination import CursorPagination


class CursorPage(CursorPagination):
    """Pages by cursor: stable while rows are added. ``?size=`` up to 500."""

    page_size = 50
    page_size_query_param = "size"
    max_page_size = 500
    ordering = "pk"
