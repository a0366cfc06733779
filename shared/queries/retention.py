"""Statements that take away what is old: deliveries that were made, events that nobody is still to be told of.

Never an undelivered one: neither a delivery that waits or was given up, nor its event, nor an event that a webhook
which is on has not come to yet. Some rows at a time, so that no lock is held for long.
"""

from sqlalchemy import Connection, text

from shared.model import LANES
from shared.queries.deliveries import WEBHOOK_IS_ON

# Rows are named by their place (ctid), which no plan but a look-up finds; FOR UPDATE keeps a delivery there.
_DELETE_DELIVERED = text("""
    DELETE FROM deliveries WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM deliveries
        WHERE delivered_at < statement_timestamp() - make_interval(secs => :seconds)
        ORDER BY delivered_at LIMIT :limit FOR UPDATE SKIP LOCKED))
""")
# Ids of a lane grow with time, so its old ones are the first: those are read, however many rows are young. Of the first ones
# of a lane those go that are old and that nobody is still to be told of: they are not beyond the cursor of a webhook that
# is on, and come before each delivery whose turn it is (the lowest id of its line).
_DELETE_EVENTS = text(f"""
    WITH cursor AS MATERIALIZED (
        SELECT lane, min(through) AS through FROM webhook_cursors JOIN webhooks ON webhooks.id = webhook_id WHERE {WEBHOOK_IS_ON}
        GROUP BY lane
    ), told AS MATERIALIZED (
        SELECT CAST(lane.lane AS smallint) AS lane, least(cursor.through, (
            SELECT event_id - 1 FROM deliveries
            WHERE (user_id % {LANES}, event_id) >= (lane.lane, 0) AND user_id % {LANES} <= lane.lane
              AND next_attempt_at IS NOT NULL
            ORDER BY user_id % {LANES}, event_id LIMIT 1
        )) AS id
        FROM generate_series(0, {LANES - 1}) AS lane (lane) LEFT JOIN cursor ON cursor.lane = lane.lane
    )
    DELETE FROM events WHERE ctid = ANY (ARRAY(
        SELECT first.ctid FROM told
        CROSS JOIN LATERAL (
            SELECT ctid, id, occurred_at FROM events
            WHERE (events.lane, events.id) > (told.lane, 0) AND events.lane <= told.lane
            ORDER BY events.lane, events.id LIMIT :limit
        ) AS first
        WHERE (told.id IS NULL OR first.id <= told.id)
          AND first.occurred_at < statement_timestamp() - make_interval(secs => :seconds)))
""")
_DELETE_OF_DELETED = text("""
    DELETE FROM deliveries WHERE ctid = ANY (ARRAY(
        SELECT old.ctid FROM webhooks CROSS JOIN LATERAL (
            SELECT ctid FROM deliveries
            WHERE (webhook_id, event_id) >= (webhooks.id, 0) AND webhook_id <= webhooks.id
            ORDER BY webhook_id, event_id, position LIMIT :limit FOR UPDATE SKIP LOCKED
        ) AS old WHERE webhooks.deleted_at IS NOT NULL LIMIT :limit))
""")
_DELETE_DELETED = text("""
    WITH gone AS (
        DELETE FROM webhooks WHERE deleted_at IS NOT NULL
          AND (SELECT event_id FROM deliveries
               WHERE (webhook_id, event_id) >= (webhooks.id, 0) AND webhook_id <= webhooks.id
               ORDER BY webhook_id, event_id LIMIT 1) IS NULL
        RETURNING id
    )
    DELETE FROM webhook_cursors WHERE webhook_id IN (SELECT id FROM gone)
""")


def delete_delivered(connection: Connection, seconds: float, limit: int) -> int:
    """Deliveries that were made longer ago than that; how many."""
    return connection.execute(_DELETE_DELIVERED, {"seconds": seconds, "limit": limit}).rowcount


def delete_events(connection: Connection, seconds: float, limit: int) -> int:
    """Events older than that, of each lane at most `limit`; how many."""
    return connection.execute(_DELETE_EVENTS, {"seconds": seconds, "limit": limit}).rowcount


def delete_deleted(connection: Connection, limit: int) -> int:
    """What belongs to deleted webhooks; how many deliveries."""
    count = connection.execute(_DELETE_OF_DELETED, {"limit": limit}).rowcount
    connection.execute(_DELETE_DELETED)
    return count
