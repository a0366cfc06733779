"""The feed of events. A reader gets each outcome at least once and in order per user, also during settling.

A cursor holds the id of the last event of each lane. Ids become visible in order only within a lane, because the lane
lock is held until after the commit. A single id for all lanes would skip the events of a slower commit.
"""

import re
from typing import Final, NamedTuple

from shared.database import autocommit
from shared.errors import cursor_ahead, user_not_found
from shared.payments.model import LANES, Event, lane_of
from shared.payments.queries import events, users

_NUMBER: Final = "([0-7][0-9a-f]{15}|[0-9a-f]{1,15})"  # a bigint that is not negative, in hex
# The form of a cursor; an empty text is the beginning of the feed. The leading 1 is the version of the form.
FEED_CURSOR_PATTERN: Final = f"^(1(-{_NUMBER}){{{LANES}}}(_{_NUMBER}-{_NUMBER})?)?$"


class UserPosition(NamedTuple):
    """The position of a reader of one user's events: the last user_seq read."""

    user_id: int
    user_seq: int


class FeedPosition(NamedTuple):
    """The position of a reader: the id of the last event of each lane.

    Reading one user's events moves `user_position` only. So no unread event is skipped: the same cursor, used for
    another user or for all users, continues at the position in `lanes`.
    """

    lanes: tuple[int, ...] = (0,) * LANES
    user_position: UserPosition | None = None


class EventPage(NamedTuple):
    """Some events, and the position after them."""

    items: list[Event]
    next: FeedPosition


def get_events(after: FeedPosition, limit: int) -> EventPage:
    """Returns the next events of all users, the oldest first, so that no busy lane delays the events of another.

    Raises Conflict if the position is beyond the last event.
    """
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
    """Returns the next events of one user, in the order of user_seq.

    Raises NotFound if there is no such user, and Conflict if the position is beyond the last event.
    """
    with autocommit() as connection:
        last = users.find_last_event_seq(connection, user_id)
        if last is None:
            raise user_not_found(user_id)
        position = after.user_position if after.user_position and after.user_position.user_id == user_id else None
        if events.is_ahead(connection, after.lanes) or (position and position.user_seq > last):
            raise cursor_ahead()
        seq = position.user_seq if position else events.find_seq(connection, user_id, after.lanes[lane_of(user_id)])
        items = events.read_events_of_user(connection, user_id, seq, limit)
    return EventPage(items, FeedPosition(after.lanes, UserPosition(user_id, items[-1].user_seq)) if items else after)


def format_cursor(cursor: FeedPosition) -> str:
    """Returns the text of a position. It has only letters, digits, - and _, so it needs no escaping."""
    lanes = "-".join(f"{last:x}" for last in cursor.lanes)
    return f"1-{lanes}" + (
        f"_{cursor.user_position.user_id:x}-{cursor.user_position.user_seq:x}" if cursor.user_position else ""
    )


def parse_cursor(text: str) -> FeedPosition:
    """Returns the position of a cursor's text. Raises ValueError, with a message for the client, if it is malformed."""
    if not re.fullmatch(FEED_CURSOR_PATTERN, text, re.ASCII):
        raise ValueError("is none that this service gave")
    if not text:
        return FeedPosition()
    lanes, _, user = text.partition("_")
    last_ids = [int(number, 16) for number in lanes.split("-")[1:]]
    user_position = UserPosition(*(int(number, 16) for number in user.split("-"))) if user else None
    return FeedPosition(tuple(last_ids), user_position)
