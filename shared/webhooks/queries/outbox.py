"""Statements that expand events into deliveries and give turns. The rows that each one reads are bounded by its input.

The deliveries of one user to one webhook are made in order. Only the first unfinished one has a `next_attempt_at`: its
turn. `_GIVE_TURNS` runs under the lock of the webhook's cursor of that lane, and never for a delivery beyond the cursor.
So expanding, finishing and rewinding cannot miss each other's changes.
"""

from collections.abc import Collection
from typing import Final, NamedTuple

from sqlalchemy import Connection, text

from shared.database import array, text_array
from shared.payments.model import LANES

WEBHOOK_IS_ON: Final = "disabled_at IS NULL AND deleted_at IS NULL"


class OutboxEvent(NamedTuple):
    """The fields of an event that decide which webhooks get it. Balances in minor units."""

    id: int
    lane: int
    user_id: int
    type: str
    balance_before: int
    balance_after: int


class NewDelivery(NamedTuple):
    """A delivery to insert. `position` orders the deliveries of one event to one webhook."""

    webhook_id: int
    event_id: int
    position: int
    type: str


class LaggingCursor(NamedTuple):
    """A cursor behind the newest event of its lane, with the webhook's event types and threshold (minor units)."""

    webhook_id: int
    lane: int
    events: list[str]
    threshold: int


class WebhookCursor(NamedTuple):
    """The position of a webhook in a lane: `through` is the id of the last expanded event."""

    webhook_id: int
    lane: int
    through: int


# To get the order from an index, compare its first columns as a row and repeat them in the ORDER BY. With an equality alone
# the planner may use an index that begins with another column, and read all lanes or all users.
NEWEST_OF_LANE: Final = """
    SELECT id FROM events WHERE (events.lane, events.id) <= ({lane}, 9223372036854775807) AND events.lane >= {lane}
    ORDER BY events.lane DESC, events.id DESC LIMIT 1
"""
NEXT_OF_LANE: Final = """
    SELECT * FROM events WHERE (events.lane, events.id) > ({cursor}.lane, {cursor}.through) AND events.lane <= {cursor}.lane
    ORDER BY events.lane, events.id LIMIT {limit}
"""
# In random order, so that no webhook and no lane always comes first if there are more cursors than the limit.
_FIND_LAGGING_CURSORS = text(f"""
    WITH newest AS MATERIALIZED (
        SELECT lane.lane, ({NEWEST_OF_LANE.format(lane="CAST(lane.lane AS smallint)")}) AS id
        FROM generate_series(0, {LANES - 1}) AS lane (lane)
    )
    SELECT cursor.webhook_id, cursor.lane, webhooks.events, webhooks.threshold
    FROM webhooks JOIN webhook_cursors AS cursor ON cursor.webhook_id = webhooks.id JOIN newest USING (lane)
    WHERE {WEBHOOK_IS_ON} AND cursor.through < newest.id AND webhooks.id <> ALL (CAST(:without AS bigint[]))
    ORDER BY random() LIMIT :limit
""")
_LOCK_CURSORS = text("""
    SELECT webhook_id, lane, through FROM webhook_cursors AS cursor
    WHERE (webhook_id, lane) IN (SELECT * FROM unnest(CAST(:webhook_ids AS bigint[]), CAST(:lanes AS smallint[])))
    ORDER BY webhook_id, lane FOR UPDATE SKIP LOCKED
""")
_READ_EVENTS = text(f"""
    SELECT cursor.webhook_id, event.id, event.lane, event.user_id, event.type, event.balance_before, event.balance_after
    FROM unnest(CAST(:webhook_ids AS bigint[]), CAST(:lanes AS smallint[]), CAST(:throughs AS bigint[]))
        AS cursor (webhook_id, lane, through)
    CROSS JOIN LATERAL ({NEXT_OF_LANE.format(cursor="cursor", limit=":limit")}) AS event
    ORDER BY event.id, cursor.webhook_id
""")
# A conflict is a delivery from before a rewind: it starts again. OFFSET 0 makes the planner look each event up by its id.
_INSERT = text("""
    INSERT INTO deliveries (webhook_id, event_id, position, type, user_id, user_seq, uid, balance, occurred_at)
    SELECT new.webhook_id, event.id, new.position, new.type, event.user_id, event.user_seq, event.uid,
           event.balance_after, event.occurred_at
    FROM unnest(CAST(:webhook_ids AS bigint[]), CAST(:event_ids AS bigint[]), CAST(:positions AS smallint[]),
                CAST(:types AS text[])) AS new (webhook_id, event_id, position, type)
    CROSS JOIN LATERAL (SELECT * FROM events WHERE events.id = new.event_id OFFSET 0) AS event
    ON CONFLICT (webhook_id, event_id, position) DO UPDATE SET attempts = 0, next_attempt_at = NULL,
        claimed_until = NULL, delivered_at = NULL, dead_at = NULL, last_error = NULL, schedule_ends_at = NULL
""")
_ADVANCE = text("""
    UPDATE webhook_cursors SET through = reached.through
    FROM unnest(CAST(:webhook_ids AS bigint[]), CAST(:lanes AS smallint[]), CAST(:throughs AS bigint[]))
        AS reached (webhook_id, lane, through)
    WHERE webhook_cursors.webhook_id = reached.webhook_id AND webhook_cursors.lane = reached.lane
""")
_GIVE_TURNS = text(f"""
    UPDATE deliveries SET next_attempt_at = clock_timestamp()
    FROM (
        SELECT DISTINCT webhook_id, user_id
        FROM unnest(CAST(:webhook_ids AS bigint[]), CAST(:user_ids AS bigint[])) AS u (webhook_id, user_id)
    ) AS u
    JOIN webhook_cursors AS cursor ON cursor.webhook_id = u.webhook_id AND cursor.lane = u.user_id % {LANES}
    CROSS JOIN LATERAL (
        SELECT webhook_id, event_id, position FROM deliveries AS line
        WHERE (line.webhook_id, line.user_id, line.event_id) >= (u.webhook_id, u.user_id, 0)
          AND (line.webhook_id, line.user_id, line.event_id) <= (u.webhook_id, u.user_id, cursor.through)
          AND line.delivered_at IS NULL AND line.dead_at IS NULL
        ORDER BY line.webhook_id, line.user_id, line.event_id, line.position LIMIT 1
    ) AS first
    WHERE deliveries.webhook_id = first.webhook_id AND deliveries.event_id = first.event_id
      AND deliveries.position = first.position
      AND NOT EXISTS (SELECT FROM deliveries AS head WHERE head.webhook_id = u.webhook_id
                      AND head.user_id = u.user_id AND head.next_attempt_at IS NOT NULL)
""")


def find_lagging_cursors(connection: Connection, without: Collection[int], limit: int) -> list[LaggingCursor]:
    """Returns up to `limit` cursors behind the newest event of their lane, except those of the webhooks `without`."""
    values = {"without": array(without), "limit": limit}
    return [LaggingCursor(*row) for row in connection.execute(_FIND_LAGGING_CURSORS, values)]


def lock_cursors(connection: Connection, lagging: Collection[LaggingCursor]) -> list[WebhookCursor]:
    """Locks the cursors that no other transaction has locked, and returns them."""
    values = {"webhook_ids": array(c.webhook_id for c in lagging), "lanes": array(c.lane for c in lagging)}
    return [WebhookCursor(*row) for row in connection.execute(_LOCK_CURSORS, values)]


def read_events(
    connection: Connection, cursors: Collection[WebhookCursor], limit: int
) -> list[tuple[int, OutboxEvent]]:
    """Returns pairs of a webhook id and an event: the next `limit` events of each cursor, in the order of event ids."""
    rows = connection.execute(_READ_EVENTS, {**_arrays(cursors), "limit": limit})
    return [(webhook_id, OutboxEvent(*event)) for webhook_id, *event in rows]


def insert_deliveries(connection: Connection, new: Collection[NewDelivery]) -> None:
    """Inserts deliveries without a turn. A delivery that exists (after a rewind) starts again."""
    values = {
        "webhook_ids": array(n.webhook_id for n in new),
        "event_ids": array(n.event_id for n in new),
        "positions": array(n.position for n in new),
        "types": text_array(n.type for n in new),
    }
    connection.execute(_INSERT, values)


def advance(connection: Connection, reached: Collection[WebhookCursor]) -> None:
    """Moves cursors forward. The caller has locked them."""
    connection.execute(_ADVANCE, _arrays(reached))


def give_turns(connection: Connection, users: Collection[tuple[int, int]]) -> None:
    """Gives the turn to the first unfinished delivery of each pair of webhook id and user id, unless one has it.

    The caller has locked the cursors of these webhooks and lanes.
    """
    values = {"webhook_ids": array(webhook for webhook, _ in users), "user_ids": array(user for _, user in users)}
    connection.execute(_GIVE_TURNS, values)


def _arrays(cursors: Collection[WebhookCursor]) -> dict[str, str]:
    return {
        "webhook_ids": array(c.webhook_id for c in cursors),
        "lanes": array(c.lane for c in cursors),
        "throughs": array(c.through for c in cursors),
    }
