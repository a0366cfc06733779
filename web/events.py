"""The feed of events: what became of every transaction, for other services to follow."""

import re

from flask import Blueprint, Response, request

from shared import events
from shared.errors import invalid_field
from shared.history import MOST_USER_ID
from web.answers import JsonAnswer
from web.requests import read_limit
from web.schemas import show_event
from web.users import DEFAULT_PAGE, LONGEST_PAGE

blueprint = Blueprint("events", __name__)


@blueprint.get("/api/events/")
def get_events() -> Response:
    after, limit, user_id = _read_cursor(), read_limit(request, DEFAULT_PAGE, LONGEST_PAGE), _read_user_id()
    page = events.get_events(after, limit) if user_id is None else events.get_events_of(user_id, after, limit)
    return JsonAnswer({"items": [show_event(event) for event in page.items], "next": events.format_cursor(page.next)})


def _read_cursor() -> events.Cursor:
    try:
        return events.parse_cursor(request.args.get("after", ""))
    except ValueError as error:
        raise invalid_field("after", str(error)) from None


def _read_user_id() -> int | None:
    text = request.args.get("user_id")
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII) or not 1 <= int(text) <= MOST_USER_ID:
        raise invalid_field("user_id", f"must be a whole number from 1 to {MOST_USER_ID}")
    return int(text)
