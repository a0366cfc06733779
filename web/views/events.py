"""The view of the event feed: the outcome of every transaction, for other services to follow."""

from flask import Blueprint, Response

from shared.payments import feed
from web.http.params import EventsQuery
from web.http.responses import JsonResponse
from web.openapi.operation import ApiResponse, documented
from web.schemas import EventsOut, event_to_json

blueprint = Blueprint("events", __name__)


@blueprint.get("/api/events/")
@documented(
    {200: ApiResponse(EventsOut, "A page. An empty page means that you are up to date. Its `next` is valid, too.")},
    problems=("user_not_found", "cursor_ahead"),
)
def get_events(query: EventsQuery) -> Response:
    """Returns a page of events, one per settled transaction: each at least once, and each user's in order."""
    after, limit, user_id = query.after, query.limit, query.user_id
    page = feed.get_events(after, limit) if user_id is None else feed.get_user_events(user_id, after, limit)
    return JsonResponse(
        {"items": [event_to_json(event) for event in page.items], "next": feed.format_cursor(page.next)}
    )
