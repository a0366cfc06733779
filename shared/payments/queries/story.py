"""The statement that reads everything stored about one transaction."""

from uuid import UUID

from sqlalchemy import Connection, text

from shared.payments.model import Story, Transaction
from shared.payments.queries.transactions import TRANSACTION_COLUMNS, transaction_of

# Events have no index on uid. The n-th entry of a user has the n-th event or a later one, so the search begins there.
_STORY = text(f"""
    SELECT {TRANSACTION_COLUMNS}, entry.effective_at, entry.balance_after, t.request_id, t.parked_at, t.attempts, t.last_error,
           u.name, u.balance, entry.seq, entry.history_at, entry.late, event.id, event.user_seq,
           coalesce(event.balance_before, entry.balance_after - entry.amount),
           (SELECT uid FROM transactions parked
            WHERE t.status = 'PENDING' AND parked.user_id = t.user_id AND parked.accept_order < t.accept_order
              AND parked.status = 'PENDING' AND parked.parked_at IS NOT NULL
            ORDER BY accept_order LIMIT 1),
           (SELECT count(*) FROM transactions ahead
            WHERE t.status = 'PENDING' AND ahead.lane = t.lane AND ahead.accept_order < t.accept_order
              AND (t.bulk OR NOT ahead.bulk)
              AND ahead.status = 'PENDING' AND ahead.parked_at IS NULL)
    FROM transactions t
    JOIN users u ON u.id = t.user_id
    LEFT JOIN ledger entry ON entry.uid = t.uid
    LEFT JOIN LATERAL (
        SELECT id, user_seq, balance_before FROM events
        WHERE events.user_id = t.user_id AND events.uid = t.uid AND events.user_seq >= coalesce(entry.seq, 1)
          AND t.status <> 'PENDING'
        ORDER BY events.user_seq LIMIT 1
    ) AS event ON true
    WHERE t.uid = CAST(:uid AS uuid)
""")


def find_story(connection: Connection, uid: UUID) -> Story | None:
    """Returns a transaction with its user, entry, event and place in the queue, or None."""
    row = connection.execute(_STORY, {"uid": str(uid)}).one_or_none()
    transaction_fields = len(Transaction._fields)
    return Story(transaction_of(row[:transaction_fields]), *row[transaction_fields:]) if row else None
