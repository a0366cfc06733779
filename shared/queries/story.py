"""The statement that reads all there is about one transaction."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection, text

from shared.queries.transactions import COLUMNS, Transaction, transaction_of


class Story(NamedTuple):
    """A transaction with all that belongs to it. What is not there (yet, or any more) is None."""

    transaction: Transaction
    request_id: str | None
    parked_at: datetime | None
    attempts: int
    last_error: str | None
    user_name: str
    user_balance: int
    seq: int | None
    history_at: datetime | None
    late: bool | None
    event_id: int | None
    user_seq: int | None
    balance_before: int | None
    parked_before: UUID | None  # the user's parked one that this one waits behind
    pending_before: int  # in its lane, as far as it waits for them: a single request does not wait for lists


# A user's n-th entry has at least the n-th event, so the search begins there; uids are not indexed in events.
_STORY = text(f"""
    SELECT {COLUMNS}, entry.effective_at, entry.balance_after, t.request_id, t.parked_at, t.attempts, t.last_error,
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
    row = connection.execute(_STORY, {"uid": str(uid)}).one_or_none()
    known = len(Transaction._fields)
    return Story(transaction_of(row[:known]), *row[known:]) if row else None
