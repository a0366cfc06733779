"""Statements that delete old rows: successful deliveries, and events that no webhook still needs.

They never delete a pending delivery or its event, a dead letter, or an event that an enabled webhook has not expanded yet.
Each one deletes a limited number of rows, so that no lock is held for long.
"""

from sqlalchemy import Connection, text

from shared.payments.model import LANES
from shared.webhooks.queries.outbox import WEBHOOK_IS_ON

# Selecting rows by ctid forces a look-up instead of a join. FOR UPDATE keeps the ctid of a delivery valid.
_DELETE_DELIVERED = text("""
    DELETE FROM deliveries WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM deliveries
        WHERE delivered_at < statement_timestamp() - make_interval(secs => :seconds)
        ORDER BY delivered_at LIMIT :limit FOR UPDATE SKIP LOCKED))
""")
# Ids of a lane grow with time, so only its first events are read, however many young ones follow. An event is deleted if it
# is old and no enabled webhook needs it: no cursor is before it, and no delivery that has its turn is for it or an earlier
# event (the turn is the lowest id of its line).
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
    """Deletes up to `limit` deliveries that succeeded more than `seconds` ago. Returns their number."""
    return connection.execute(_DELETE_DELIVERED, {"seconds": seconds, "limit": limit}).rowcount


def delete_events(connection: Connection, seconds: float, limit: int) -> int:
    """Deletes events older than `seconds`, up to `limit` per lane. Returns their number."""
    return connection.execute(_DELETE_EVENTS, {"seconds": seconds, "limit": limit}).rowcount


def delete_deleted(connection: Connection, limit: int) -> int:
    """Deletes up to `limit` deliveries of deleted webhooks, and deleted webhooks without any. Returns the deliveries deleted."""
    count = connection.execute(_DELETE_OF_DELETED, {"limit": limit}).rowcount
    connection.execute(_DELETE_DELETED)
    return count
