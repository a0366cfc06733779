"""Statements that tell how webhooks stand: what was given up, what waits."""

from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import Connection, text

from shared.queries.deliveries import ON


class LetterKey(NamedTuple):
    """A delivery's place among those of its webhook."""

    event_id: int
    position: int


class DeadLetter(NamedTuple):
    """A delivery that was given up. `balance` in minor units."""

    event_id: int
    position: int
    type: str
    user_id: int
    user_seq: int
    balance: int
    attempts: int
    last_error: str | None
    occurred_at: datetime
    dead_at: datetime

    @property
    def key(self) -> LetterKey:
        return LetterKey(self.event_id, self.position)


class Waiting(NamedTuple):
    """For how many seconds the delivery that is due for longest has been so, how many were given up, webhooks off.

    And how many are still to be made, of each webhook at most MOST_COUNTED.
    """

    overdue_seconds: float
    dead: int
    off: int
    pending: int


_READ_DEAD = text("""
    SELECT event_id, position, type, user_id, user_seq, balance, attempts, last_error, occurred_at, dead_at
    FROM deliveries
    WHERE webhook_id = :webhook_id AND dead_at IS NOT NULL AND (event_id, position) > (:event_id, :position)
    ORDER BY event_id, position LIMIT :limit
""")
MOST_COUNTED: Final = 10_000  # an index look-up each
_WAITING = text(f"""
    SELECT
        (SELECT coalesce(extract(epoch FROM statement_timestamp() - min(oldest.next_attempt_at)), 0) FROM webhooks
         CROSS JOIN LATERAL (SELECT next_attempt_at FROM deliveries
             WHERE webhook_id = webhooks.id AND next_attempt_at IS NOT NULL
             ORDER BY next_attempt_at LIMIT 1) AS oldest
         WHERE {ON}) AS overdue,
        (SELECT count(*) FROM webhooks JOIN deliveries ON webhook_id = webhooks.id
         WHERE deleted_at IS NULL AND dead_at IS NOT NULL) AS dead,
        (SELECT count(*) FROM webhooks WHERE deleted_at IS NULL AND disabled_at IS NOT NULL) AS off,
        (SELECT coalesce(sum(line.count), 0) FROM webhooks
         CROSS JOIN LATERAL (SELECT count(*) AS count FROM (SELECT FROM deliveries
             WHERE webhook_id = webhooks.id AND delivered_at IS NULL AND dead_at IS NULL
             LIMIT {MOST_COUNTED}) AS undelivered) AS line
         WHERE {ON}) AS pending
""")


def read_dead_letters(connection: Connection, webhook_id: int, after: LetterKey | None, limit: int) -> list[DeadLetter]:
    """In the order of the events."""
    place = after or LetterKey(0, 0)
    values = {"webhook_id": webhook_id, "event_id": place.event_id, "position": place.position, "limit": limit}
    return [DeadLetter(*row) for row in connection.execute(_READ_DEAD, values)]


def read_waiting(connection: Connection) -> Waiting:
    row = connection.execute(_WAITING).one()
    return Waiting(max(0.0, float(row.overdue)), row.dead, row.off, int(row.pending))
