"""Statements that read the state of webhooks: dead letters and backlog."""

from typing import Final

from sqlalchemy import Connection, text

from shared.webhooks.model import DeadLetter, DeadLetterKey, WebhookBacklog
from shared.webhooks.queries.outbox import NEXT_OF_LANE, WEBHOOK_IS_ON

_READ_DEAD = text("""
    SELECT event_id, position, type, user_id, user_seq, balance, attempts, last_error, occurred_at, dead_at
    FROM deliveries
    WHERE (webhook_id, event_id, position) > (:webhook_id, :event_id, :position) AND webhook_id <= :webhook_id
      AND dead_at IS NOT NULL
    ORDER BY webhook_id, event_id, position LIMIT :limit
""")
MAX_COUNTED_DELIVERIES: Final = 1_000  # per webhook; each one costs an index look-up
# Late are due deliveries, and events that are not expanded yet. Of each lane only the first event beyond the slowest cursor
# is read.
_WEBHOOK_BACKLOG = text(f"""
    WITH switched_on AS MATERIALIZED (SELECT id FROM webhooks WHERE {WEBHOOK_IS_ON}),
    behind AS MATERIALIZED (
        SELECT lane, min(through) AS through FROM webhook_cursors JOIN switched_on ON id = webhook_id GROUP BY lane
    )
    SELECT
        (SELECT coalesce(extract(epoch FROM statement_timestamp() - min(since)), 0) FROM (
            SELECT oldest.next_attempt_at AS since FROM switched_on
            CROSS JOIN LATERAL (SELECT next_attempt_at FROM deliveries
                WHERE (webhook_id, next_attempt_at) >= (switched_on.id, '-infinity') AND webhook_id <= switched_on.id
                  AND next_attempt_at IS NOT NULL
                ORDER BY webhook_id, next_attempt_at LIMIT 1) AS oldest
            UNION ALL
            SELECT event.occurred_at FROM behind
            CROSS JOIN LATERAL ({NEXT_OF_LANE.format(cursor="behind", limit=1)}) AS event
        ) AS late) AS overdue,
        (SELECT coalesce(sum(dead.count), 0) FROM webhooks
         CROSS JOIN LATERAL (SELECT count(*) AS count FROM (SELECT FROM deliveries
             WHERE (webhook_id, event_id) >= (webhooks.id, 0) AND webhook_id <= webhooks.id AND dead_at IS NOT NULL
             ORDER BY webhook_id, event_id, position LIMIT {MAX_COUNTED_DELIVERIES}) AS dead) AS dead
         WHERE deleted_at IS NULL) AS dead,
        (SELECT count(*) FROM webhooks WHERE deleted_at IS NULL AND disabled_at IS NOT NULL) AS off,
        (SELECT coalesce(sum(line.count), 0) FROM switched_on
         CROSS JOIN LATERAL (SELECT count(*) AS count FROM (SELECT FROM deliveries
             WHERE (webhook_id, user_id) >= (switched_on.id, 0) AND webhook_id <= switched_on.id
               AND delivered_at IS NULL AND dead_at IS NULL
             ORDER BY webhook_id, user_id, event_id, position LIMIT {MAX_COUNTED_DELIVERIES}) AS undelivered) AS line) AS pending
""")


def read_dead_letters(
    connection: Connection, webhook_id: int, after: DeadLetterKey | None, limit: int
) -> list[DeadLetter]:
    """Returns up to `limit` dead letters of a webhook after a position, in the order of the events."""
    place = after or DeadLetterKey(0, 0)
    values = {"webhook_id": webhook_id, "event_id": place.event_id, "position": place.position, "limit": limit}
    return [DeadLetter(*row) for row in connection.execute(_READ_DEAD, values)]


def read_webhook_backlog(connection: Connection) -> WebhookBacklog:
    """Returns the delay of deliveries in seconds and the counts of a WebhookBacklog."""
    row = connection.execute(_WEBHOOK_BACKLOG).one()
    return WebhookBacklog(max(0.0, float(row.overdue)), int(row.dead), row.off, int(row.pending))
