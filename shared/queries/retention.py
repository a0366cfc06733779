"""Statements that take away what is old: deliveries that were made, events that nobody is still to be told of.

Never an undelivered one: neither a delivery that waits or was given up, nor its event, nor an event that a webhook
which is on has not come to yet. Some rows at a time, so that no lock is held for long.
"""

from sqlalchemy import Connection, text

from shared.queries.deliveries import ON
from shared.status import LANES

_DELETE_DELIVERED = text("""
    DELETE FROM deliveries WHERE (webhook_id, event_id, position) IN (
        SELECT webhook_id, event_id, position FROM deliveries
        WHERE delivered_at < statement_timestamp() - make_interval(secs => :seconds)
        ORDER BY delivered_at LIMIT :limit FOR UPDATE SKIP LOCKED)
""")
# Ids of a lane grow with time. A line's first one, whose turn it is, has its lowest id.
_DELETE_EVENTS = text(f"""
    DELETE FROM events WHERE id IN (
        SELECT old.id FROM generate_series(0, {LANES - 1}) AS lane (lane)
        CROSS JOIN LATERAL (
            SELECT least(
                (SELECT min(through) FROM webhook_cursors AS cursor JOIN webhooks ON webhooks.id = cursor.webhook_id
                 WHERE cursor.lane = lane.lane AND {ON}),
                (SELECT min(event_id) - 1 FROM deliveries JOIN webhooks ON webhooks.id = webhook_id
                 WHERE next_attempt_at IS NOT NULL AND user_id % {LANES} = lane.lane AND deleted_at IS NULL)
            ) AS id
        ) AS told
        CROSS JOIN LATERAL (
            SELECT id FROM events
            WHERE events.lane = CAST(lane.lane AS smallint) AND (told.id IS NULL OR events.id <= told.id)
              AND occurred_at < statement_timestamp() - make_interval(secs => :seconds)
            ORDER BY id LIMIT :limit
        ) AS old)
""")
_DELETE_OF_DELETED = text("""
    DELETE FROM deliveries WHERE (webhook_id, event_id, position) IN (
        SELECT webhook_id, event_id, position FROM deliveries
        WHERE webhook_id IN (SELECT id FROM webhooks WHERE deleted_at IS NOT NULL)
        LIMIT :limit FOR UPDATE SKIP LOCKED)
""")
_DELETE_DELETED = text("""
    WITH gone AS (
        DELETE FROM webhooks WHERE deleted_at IS NOT NULL
          AND NOT EXISTS (SELECT FROM deliveries WHERE webhook_id = webhooks.id)
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
