"""Statements that make deliveries of events, and give turns.

Per webhook and user the first one that is not over has a `next_attempt_at`: it alone has its turn. Turns are given
(`_GIVE_TURNS`) under the lock of the webhook's cursor of that lane, never for what lies beyond that cursor, so that
making deliveries, ending them and rewinding never miss each other.
"""

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection, text

from shared.database import array, text_array
from shared.status import LANES

ON: Final = "disabled_at IS NULL AND deleted_at IS NULL"


class Event(NamedTuple):
    """What a webhook is told of, as far as it matters to whether it is told. Balances in minor units."""

    id: int
    lane: int
    user_id: int
    type: str
    balance_before: int
    balance_after: int


class NewDelivery(NamedTuple):
    """Something to tell; `position` orders what one event means."""

    event_id: int
    position: int
    type: str


_FIND_BEHIND = text(f"""
    SELECT id, events, threshold FROM webhooks WHERE {ON} AND EXISTS (
        SELECT FROM webhook_cursors AS cursor WHERE cursor.webhook_id = webhooks.id
          AND EXISTS (SELECT FROM events WHERE events.lane = cursor.lane AND events.id > cursor.through))
    ORDER BY id
""")
_LOCK_CURSORS = text("""
    SELECT lane, through FROM webhook_cursors WHERE webhook_id = :webhook_id ORDER BY lane FOR UPDATE SKIP LOCKED
""")
_READ_EVENTS = text("""
    SELECT event.id, event.lane, event.user_id, event.type, event.balance_before, event.balance_after
    FROM unnest(CAST(:lanes AS smallint[]), CAST(:throughs AS bigint[])) AS cursor (lane, through)
    CROSS JOIN LATERAL (
        SELECT * FROM events WHERE events.lane = cursor.lane AND events.id > cursor.through
        ORDER BY events.id LIMIT :limit
    ) AS event
    ORDER BY event.id
""")
# What was told before (the webhook was rewound) is to be told again.
_INSERT = text("""
    INSERT INTO deliveries (webhook_id, event_id, position, type, user_id, user_seq, uid, balance, occurred_at)
    SELECT :webhook_id, event.id, told.position, told.type, event.user_id, event.user_seq, event.uid,
           event.balance_after, event.occurred_at
    FROM unnest(CAST(:event_ids AS bigint[]), CAST(:positions AS smallint[]), CAST(:types AS text[]))
        AS told (event_id, position, type)
    JOIN events AS event ON event.id = told.event_id
    ON CONFLICT (webhook_id, event_id, position) DO UPDATE SET attempts = 0, next_attempt_at = NULL,
        claimed_until = NULL, delivered_at = NULL, dead_at = NULL, last_error = NULL, schedule_ends_at = NULL
""")
_ADVANCE = text("""
    UPDATE webhook_cursors SET through = reached.through
    FROM unnest(CAST(:lanes AS smallint[]), CAST(:throughs AS bigint[])) AS reached (lane, through)
    WHERE webhook_cursors.webhook_id = :webhook_id AND webhook_cursors.lane = reached.lane
""")
_GIVE_TURNS = text(f"""
    UPDATE deliveries SET next_attempt_at = clock_timestamp()
    FROM (SELECT DISTINCT user_id FROM unnest(CAST(:user_ids AS bigint[])) AS u (user_id)) AS u
    JOIN webhook_cursors AS cursor ON cursor.webhook_id = :webhook_id AND cursor.lane = u.user_id % {LANES}
    CROSS JOIN LATERAL (
        SELECT event_id, position FROM deliveries AS line
        WHERE line.webhook_id = :webhook_id AND line.user_id = u.user_id AND line.event_id <= cursor.through
          AND line.delivered_at IS NULL AND line.dead_at IS NULL
        ORDER BY line.event_id, line.position LIMIT 1
    ) AS first
    WHERE deliveries.webhook_id = :webhook_id AND deliveries.event_id = first.event_id
      AND deliveries.position = first.position
      AND NOT EXISTS (SELECT FROM deliveries AS head WHERE head.webhook_id = :webhook_id
                      AND head.user_id = u.user_id AND head.next_attempt_at IS NOT NULL)
""")


def find_behind(connection: Connection) -> list[tuple[int, list[str], int]]:
    """The webhooks for which there are events that are no deliveries yet: id, types asked for, threshold."""
    return [(row.id, row.events, row.threshold) for row in connection.execute(_FIND_BEHIND)]


def lock_cursors(connection: Connection, webhook_id: int) -> dict[int, int]:
    """The last event id by lane, of the lanes that nobody else has just now."""
    return {row.lane: row.through for row in connection.execute(_LOCK_CURSORS, {"webhook_id": webhook_id})}


def read_events(connection: Connection, cursors: dict[int, int], limit: int) -> list[Event]:
    """What comes after the cursors, of each lane at most `limit`, in the order of ids."""
    values = {"lanes": array(cursors.keys()), "throughs": array(cursors.values()), "limit": limit}
    return [Event(*row) for row in connection.execute(_READ_EVENTS, values)]


def insert_deliveries(connection: Connection, webhook_id: int, told: Sequence[NewDelivery]) -> None:
    values = {
        "webhook_id": webhook_id,
        "event_ids": array(t.event_id for t in told),
        "positions": array(t.position for t in told),
        "types": text_array(t.type for t in told),
    }
    connection.execute(_INSERT, values)


def advance(connection: Connection, webhook_id: int, reached: dict[int, int]) -> None:
    """Move the cursors, by lane. The caller has their locks."""
    values = {"webhook_id": webhook_id, "lanes": array(reached.keys()), "throughs": array(reached.values())}
    connection.execute(_ADVANCE, values)


def give_turns(connection: Connection, webhook_id: int, user_ids: Collection[int]) -> None:
    """To the first in each user's line, where none has it. The caller has the locks of those users' cursors."""
    connection.execute(_GIVE_TURNS, {"webhook_id": webhook_id, "user_ids": array(user_ids)})
