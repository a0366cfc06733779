"""The feed: every outcome at least once, in order per user, none ever skipped, also while settling goes on.

A cursor holds the last event's id of each lane. Only within a lane do ids become visible in their order, since the
lane's lock is held until after the commit; one id for all lanes would pass over what a slower commit is about to show.
"""

import re
from typing import Final, NamedTuple

from shared.database import autocommit
from shared.errors import cursor_ahead, user_not_found
from shared.model import LANES, Event, lane_of
from shared.queries import events, users

_NUMBER: Final = "([0-7][0-9a-f]{15}|[0-9a-f]{1,15})"  # a bigint that is not negative, in hex
# What a cursor looks like; an empty text is the beginning. The 1 in front is the form's, should there be another.
FEED_CURSOR_PATTERN: Final = f"^(1(-{_NUMBER}){{{LANES}}}(_{_NUMBER}-{_NUMBER})?)?$"


class UserPosition(NamedTuple):
    """How far somebody has read who follows one user."""

    user_id: int
    user_seq: int


class FeedPosition(NamedTuple):
    """How far a reader has come: the last event's id of each lane.

    Who narrows the feed to a user moves on in `user_position` alone. So nothing that was not shown is ever passed over: the
    same cursor, used for another user or for all, goes on where that reader was.
    """

    lanes: tuple[int, ...] = (0,) * LANES
    user_position: UserPosition | None = None


class EventPage(NamedTuple):
    """Some events, and where the next ones begin."""

    items: list[Event]
    next: FeedPosition


def get_events(after: FeedPosition, limit: int) -> EventPage:
    """The next events of all users, the oldest first: so no lane, however busy, keeps another waiting. Raises Conflict."""
    with autocommit() as connection:
        if events.is_ahead(connection, after.lanes):
            raise cursor_ahead()
        items = events.read_events(connection, after.lanes, limit)
    if not items:
        return EventPage([], after)
    lanes = list(after.lanes)
    for event in items:
        lanes[lane_of(event.user_id)] = event.id
    return EventPage(items, FeedPosition(tuple(lanes)))


def get_user_events(user_id: int, after: FeedPosition, limit: int) -> EventPage:
    """The next events of one user. Raises NotFound, and Conflict."""
    with autocommit() as connection:
        last = users.find_last_event_seq(connection, user_id)
        if last is None:
            raise user_not_found(user_id)
        place = after.user_position if after.user_position and after.user_position.user_id == user_id else None
        if events.is_ahead(connection, after.lanes) or (place and place.user_seq > last):
            raise cursor_ahead()
        seq = place.user_seq if place else events.find_seq(connection, user_id, after.lanes[lane_of(user_id)])
        items = events.read_events_of_user(connection, user_id, seq, limit)
    return EventPage(items, FeedPosition(after.lanes, UserPosition(user_id, items[-1].user_seq)) if items else after)


def format_cursor(cursor: FeedPosition) -> str:
    """Of letters, digits, - and _ alone, so that it needs no escaping anywhere."""
    lanes = "-".join(f"{last:x}" for last in cursor.lanes)
    return f"1-{lanes}" + (
        f"_{cursor.user_position.user_id:x}-{cursor.user_position.user_seq:x}" if cursor.user_position else ""
    )


def parse_cursor(text: str) -> FeedPosition:
    """Raises ValueError, with a sentence for the client."""
    if not re.fullmatch(FEED_CURSOR_PATTERN, text, re.ASCII):
        raise ValueError("is none that this service gave")
    if not text:
        return FeedPosition()
    lanes, _, place = text.partition("_")
    read = [int(number, 16) for number in lanes.split("-")[1:]]
    return FeedPosition(tuple(read), UserPosition(*(int(number, 16) for number in place.split("-"))) if place else None)
