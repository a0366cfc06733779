"""Statements that make deliveries of events, and give turns. What each reads is bounded by what it is given.

Per webhook and user the first one that is not over has a `next_attempt_at`: it alone has its turn. Turns are given
(`_GIVE_TURNS`) under the lock of the webhook's cursor of that lane, never for what lies beyond that cursor, so that
making deliveries, ending them and rewinding never miss each other.
"""

from collections.abc import Collection
from typing import Final, NamedTuple

from sqlalchemy import Connection, text

from shared.database import array, text_array
from shared.model import LANES

WEBHOOK_IS_ON: Final = "disabled_at IS NULL AND deleted_at IS NULL"


class OutboxEvent(NamedTuple):
    """What a webhook is told of, as far as it matters to whether it is told. Balances in minor units."""

    id: int
    lane: int
    user_id: int
    type: str
    balance_before: int
    balance_after: int


class NewDelivery(NamedTuple):
    """Something to tell a webhook; `position` orders what one event means."""

    webhook_id: int
    event_id: int
    position: int
    type: str


class LaggingCursor(NamedTuple):
    """A webhook's cursor of a lane in which there are later events; the types asked for, the threshold."""

    webhook_id: int
    lane: int
    events: list[str]
    threshold: int


class WebhookCursor(NamedTuple):
    """How far events of a lane have become deliveries of a webhook: `through` is the id of the last one."""

    webhook_id: int
    lane: int
    through: int


# Wherever an index is to give the order, its first columns are compared as a row and stand in the ORDER BY: with an equality
# alone the planner may walk an index that begins with another column, through all lanes or all users.
NEWEST_OF_LANE: Final = """
    SELECT id FROM events WHERE (events.lane, events.id) <= ({lane}, 9223372036854775807) AND events.lane >= {lane}
    ORDER BY events.lane DESC, events.id DESC LIMIT 1
"""
NEXT_OF_LANE: Final = """
    SELECT * FROM events WHERE (events.lane, events.id) > ({cursor}.lane, {cursor}.through) AND events.lane <= {cursor}.lane
    ORDER BY events.lane, events.id LIMIT {limit}
"""
# In any order, so that no webhook and no lane always comes first where there are too many.
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
# What was told before (the webhook was rewound) is to be told again. OFFSET 0: each event is looked up by its id.
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
    """The cursors beyond which there are events that are no deliveries yet, but for those of some webhooks."""
    values = {"without": array(without), "limit": limit}
    return [LaggingCursor(*row) for row in connection.execute(_FIND_LAGGING_CURSORS, values)]


def lock_cursors(connection: Connection, behind: Collection[LaggingCursor]) -> list[WebhookCursor]:
    """Those of the cursors that nobody else has just now."""
    values = {"webhook_ids": array(b.webhook_id for b in behind), "lanes": array(b.lane for b in behind)}
    return [WebhookCursor(*row) for row in connection.execute(_LOCK_CURSORS, values)]


def read_events(
    connection: Connection, cursors: Collection[WebhookCursor], limit: int
) -> list[tuple[int, OutboxEvent]]:
    """Pairs of a webhook's id and an event: of each cursor the next ones, at most `limit`, in the order of ids."""
    rows = connection.execute(_READ_EVENTS, {**_arrays(cursors), "limit": limit})
    return [(webhook_id, OutboxEvent(*event)) for webhook_id, *event in rows]


def insert_deliveries(connection: Connection, new: Collection[NewDelivery]) -> None:
    values = {
        "webhook_ids": array(n.webhook_id for n in new),
        "event_ids": array(n.event_id for n in new),
        "positions": array(n.position for n in new),
        "types": text_array(n.type for n in new),
    }
    connection.execute(_INSERT, values)


def advance(connection: Connection, reached: Collection[WebhookCursor]) -> None:
    """Move the cursors there. The caller has their locks."""
    connection.execute(_ADVANCE, _arrays(reached))


def give_turns(connection: Connection, users: Collection[tuple[int, int]]) -> None:
    """To the first in each line, where none has it. A line is a webhook's and a user's; the caller has the locks of
    their cursors.
    """
    values = {"webhook_ids": array(webhook for webhook, _ in users), "user_ids": array(user for _, user in users)}
    connection.execute(_GIVE_TURNS, values)


def _arrays(cursors: Collection[WebhookCursor]) -> dict[str, str]:
    return {
        "webhook_ids": array(c.webhook_id for c in cursors),
        "lanes": array(c.lane for c in cursors),
        "throughs": array(c.through for c in cursors),
    }
