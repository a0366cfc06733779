"""Statements on transactions: accept, find, read what is pending, make final, park."""

import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, text

from shared.database import array, text_array
from shared.ledger import Outcome
from shared.status import LANES, Status, Type


class Request(NamedTuple):
    """A transaction as a client asked for it. `amount` in minor units, `requested_at` UTC or None.

    `arrived` is time.monotonic() when it came in, None for "just now": it counts as accepted from then on, so that
    no queue of ours makes a client's "now" too old.
    """

    uid: UUID
    user_id: int
    type: Type
    amount: int
    requested_at: datetime | None
    request_id: str | None = None
    arrived: float | None = None


class Transaction(NamedTuple):
    """A transaction as it stands. Amounts in minor units; the last two are None unless COMPLETED.

    `lowest_balance`: see `shared.ledger.Outcome`.
    """

    uid: UUID
    user_id: int
    type: Type
    amount: int
    requested_at: datetime | None
    status: Status
    reason: str | None
    accepted_at: datetime
    settled_at: datetime | None
    accept_order: int
    lane: int
    lowest_balance: int | None
    effective_at: datetime | None
    balance_after: int | None


COLUMNS = """t.uid, t.user_id, t.type, t.amount, t.requested_at, t.status, t.reason, t.accepted_at, t.settled_at,
    t.accept_order, t.lane, t.lowest_balance"""
VIEW = (
    f"SELECT {COLUMNS}, entry.effective_at, entry.balance_after FROM transactions t LEFT JOIN ledger entry USING (uid)"
)


def transaction_of(row: Any) -> Transaction:
    uid, user_id, type_, amount, requested_at, status, *rest = row
    return Transaction(uid, user_id, Type(type_), amount, requested_at, Status(status), *rest)


# Acceptance numbers are taken in the order sent, rows inserted in uid order: two batches with the same uids in
# opposite orders would deadlock otherwise. NOT EXISTS spares a repeat the wait for whoever is settling that row.
# now() is the start of the transaction, before any lock was waited for. It judges timestamps, too: _AHEAD must say
# the same of them a moment later.
# `bulk`: the row came in a list, or an earlier row of its user waits with the lists (or is parked: nobody knows for how
# long). So a row that is settled before the lists has no earlier one of its user among them.
_ACCEPT = text(f"""
    WITH asked AS MATERIALIZED (
        SELECT uid, user_id, type, amount, requested_at, request_id,
               now() - make_interval(secs => waited) AS accepted_at, nextval('transactions_accept_order_seq') AS accept_order
        FROM unnest(CAST(:uids AS uuid[]), CAST(:user_ids AS bigint[]), CAST(:types AS text[]),
                    CAST(:amounts AS bigint[]), CAST(:requested_ats AS timestamptz[]),
                    CAST(:request_ids AS text[]), CAST(:waited AS double precision[]))
             WITH ORDINALITY AS asked (uid, user_id, type, amount, requested_at, request_id, waited, position)
        ORDER BY position
    )
    INSERT INTO transactions AS t
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
    WHERE NOT EXISTS (SELECT FROM transactions known WHERE known.uid = asked.uid)
      AND (asked.requested_at IS NULL OR asked.requested_at <= now() + interval '60 seconds')
    ORDER BY asked.uid, asked.accept_order
    ON CONFLICT (uid) DO NOTHING
    RETURNING {COLUMNS}, NULL, NULL
""")


def insert_pending(
    connection: Connection, requests: Sequence[Request], *, bulk: bool = False
) -> dict[UUID, Transaction]:
    """Inserts those requests whose uid is new, whose user exists and whose timestamp is not ahead.

    Returns the new transactions by uid. `bulk` rows yield to all others, but for later ones of their own users.
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
    return {row.uid: transaction_of(row) for row in rows}


_FIND = text(f"{VIEW} WHERE t.uid = ANY(CAST(:uids AS uuid[]))")


def find_transactions(connection: Connection, uids: Iterable[UUID]) -> dict[UUID, Transaction]:
    """Those of the transactions that exist, by uid."""
    rows = connection.execute(_FIND, {"uids": array(uids)})
    return {row.uid: transaction_of(row) for row in rows}


_FIND_FINAL = text(f"{VIEW} WHERE t.uid = ANY(CAST(:uids AS uuid[])) AND t.status <> 'PENDING'")


def find_final(connection: Connection, uids: Iterable[UUID]) -> dict[UUID, Transaction]:
    """Those of the transactions that are final, by uid."""
    return {row.uid: transaction_of(row) for row in connection.execute(_FIND_FINAL, {"uids": array(uids)})}


_AHEAD = text("""
    SELECT asked.position::int FROM unnest(CAST(:requested_ats AS timestamptz[]))
        WITH ORDINALITY AS asked (requested_at, position)
    WHERE asked.requested_at > now() + interval '60 seconds'
""")


def find_ahead(connection: Connection, requested_ats: Sequence[datetime | None]) -> set[int]:
    """The positions (from 0) of the instants that lay more than 60 s ahead when the transaction began."""
    rows = connection.execute(_AHEAD, {"requested_ats": array(requested_ats)})
    return {row.position - 1 for row in rows}


# The status is compared in a way that no index and no statistics know: they say that next to nothing is PENDING, and
# the planner would go through all of a backlog for each uid (8 million comparisons a batch at 16,000 rows).
_MAKE_FINAL = text("""
    UPDATE transactions t
    SET status = outcome.status, reason = outcome.reason, lowest_balance = outcome.lowest_balance, settled_at = :moment,
        last_error = NULL
    FROM unnest(CAST(:uids AS uuid[]), CAST(:statuses AS text[]), CAST(:reasons AS text[]), CAST(:lowest AS bigint[]))
        AS outcome (uid, status, reason, lowest_balance)
    WHERE t.uid = outcome.uid AND t.status || '' = 'PENDING'
""")


def make_final(connection: Connection, outcomes: Sequence[Outcome], moment: datetime) -> int:
    """Write the outcomes' statuses on the rows that are still PENDING; the number of rows written."""
    result = connection.execute(
        _MAKE_FINAL,
        {
            "uids": array(o.pending.uid for o in outcomes),
            "statuses": array(o.status for o in outcomes),
            "reasons": array(o.reason for o in outcomes),
            "lowest": array(o.lowest_balance for o in outcomes),
            "moment": moment,
        },
    )
    return result.rowcount
