"""Statements on transactions: accept new ones, find stored ones."""

import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, text

from shared.database import array, text_array
from shared.payments.model import LANES, Status, Transaction, TransactionRequest, Type, lane_of

TRANSACTION_COLUMNS = """t.uid, t.user_id, t.type, t.amount, t.requested_at, t.status, t.reason, t.accepted_at, t.settled_at,
    t.accept_order, t.lane, t.lowest_balance"""
TRANSACTION_VIEW = f"SELECT {TRANSACTION_COLUMNS}, entry.effective_at, entry.balance_after FROM transactions t LEFT JOIN ledger entry USING (uid)"


def transaction_of(row: Any) -> Transaction:
    """Returns the transaction of a row with TRANSACTION_COLUMNS, effective_at and balance_after."""
    uid, user_id, type_, amount, requested_at, status, *rest = row
    return Transaction(uid, user_id, Type(type_), amount, requested_at, Status(status), *rest)


# Acceptance numbers follow the order of the requests. Rows are inserted in uid order, because two batches with the same
# uids in opposite orders would deadlock. NOT EXISTS saves a repeat from waiting for the worker that settles its row.
# now() is the start of the transaction, before any wait for a lock.
# `bulk`: the row came in a list, or an earlier row of its user waits with the lists or is parked. So a row that settles
# before the lists has no earlier row of its user among them.
_ACCEPT = text(f"""
    WITH asked AS MATERIALIZED (
        SELECT uid, user_id, type, amount, requested_at, request_id, position,
               now() - make_interval(secs => waited) AS accepted_at,
               requested_at IS NOT NULL AND requested_at > now() + interval '60 seconds' AS is_ahead,
               nextval('transactions_accept_order_seq') AS accept_order
        FROM unnest(CAST(:uids AS uuid[]), CAST(:user_ids AS bigint[]), CAST(:types AS text[]),
                    CAST(:amounts AS bigint[]), CAST(:requested_ats AS timestamptz[]),
                    CAST(:request_ids AS text[]), CAST(:waited AS double precision[]))
             WITH ORDINALITY AS asked (uid, user_id, type, amount, requested_at, request_id, waited, position)
        ORDER BY position
    ), new AS (
        INSERT INTO transactions
            (uid, user_id, type, amount, requested_at, accept_order, accepted_at, request_id, bulk)
        SELECT asked.uid, asked.user_id, asked.type, asked.amount, asked.requested_at, asked.accept_order,
               asked.accepted_at, asked.request_id,
               CAST(:bulk AS boolean)
               OR (SELECT true FROM transactions earlier
                   WHERE earlier.lane = CAST(asked.user_id % {LANES} AS smallint) AND earlier.user_id = asked.user_id
                     AND earlier.bulk AND earlier.status = 'PENDING' AND earlier.parked_at IS NULL
                   ORDER BY earlier.accept_order LIMIT 1) IS NOT NULL
               OR (SELECT true FROM transactions parked
                   WHERE parked.user_id = asked.user_id AND parked.status = 'PENDING' AND parked.parked_at IS NOT NULL
                   ORDER BY parked.accept_order LIMIT 1) IS NOT NULL
        FROM asked JOIN users ON users.id = asked.user_id
        WHERE NOT EXISTS (SELECT FROM transactions known WHERE known.uid = asked.uid) AND NOT asked.is_ahead
        ORDER BY asked.uid, asked.accept_order
        ON CONFLICT (uid) DO NOTHING
        RETURNING accept_order
    )
    SELECT asked.position - 1 AS position, asked.accept_order, asked.accepted_at, asked.is_ahead,
           new.accept_order IS NOT NULL AS is_new
    FROM asked LEFT JOIN new USING (accept_order)
""")


class Inserted(NamedTuple):
    """The new transactions by uid, and the positions (from 0) of requests whose timestamp lies more than 60 s ahead."""

    new: dict[UUID, Transaction]
    ahead: set[int]


def insert_pending(connection: Connection, requests: Sequence[TransactionRequest], *, bulk: bool = False) -> Inserted:
    """Inserts the requests whose uid is new, whose user exists and whose timestamp is not ahead. Returns the new rows.

    Rows with `bulk` settle after all others, except later rows of their own users.
    """
    rows = connection.execute(
        _ACCEPT,
        {
            "uids": array(r.uid for r in requests),
            "user_ids": array(r.user_id for r in requests),
            "types": array(r.type for r in requests),
            "amounts": array(r.amount for r in requests),
            "requested_ats": array(r.requested_at for r in requests),
            "request_ids": text_array(r.request_id for r in requests),
            "bulk": bulk,
            "waited": array(0.0 if r.arrived is None else max(0.0, time.monotonic() - r.arrived) for r in requests),
        },
    )
    inserted = Inserted({}, set())
    for position, accept_order, accepted_at, is_ahead, is_new in rows:
        if is_new:
            request = requests[position]
            inserted.new[request.uid] = _pending_transaction(request, accepted_at, accept_order)
        elif is_ahead:
            inserted.ahead.add(position)
    return inserted


def _pending_transaction(request: TransactionRequest, accepted_at: datetime, accept_order: int) -> Transaction:
    return Transaction(
        uid=request.uid,
        user_id=request.user_id,
        type=request.type,
        amount=request.amount,
        requested_at=request.requested_at,
        status=Status.PENDING,
        reason=None,
        accepted_at=accepted_at,
        settled_at=None,
        accept_order=accept_order,
        lane=lane_of(request.user_id),
        lowest_balance=None,
        effective_at=None,
        balance_after=None,
    )


_FIND = text(f"{TRANSACTION_VIEW} WHERE t.uid = ANY(CAST(:uids AS uuid[]))")


def find_transactions(connection: Connection, uids: Iterable[UUID]) -> dict[UUID, Transaction]:
    """Returns the stored transactions among these uids, by uid."""
    rows = connection.execute(_FIND, {"uids": array(uids)})
    return {row.uid: transaction_of(row) for row in rows}


_FIND_FINAL = text(f"{TRANSACTION_VIEW} WHERE t.uid = ANY(CAST(:uids AS uuid[])) AND t.status <> 'PENDING'")


def find_final(connection: Connection, uids: Iterable[UUID]) -> dict[UUID, Transaction]:
    """Returns the final transactions among these uids, by uid."""
    return {row.uid: transaction_of(row) for row in connection.execute(_FIND_FINAL, {"uids": array(uids)})}
