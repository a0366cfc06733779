"""Statements on transactions: accept, find, read what is pending, make final, park."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, text

from shared.database import array, text_array
from shared.ledger import Outcome, Pending
from shared.status import Status, Type


class Request(NamedTuple):
    """A transaction as a client asked for it. `amount` in minor units, `requested_at` UTC or None."""

    uid: UUID
    user_id: int
    type: Type
    amount: int
    requested_at: datetime | None
    request_id: str | None = None


class Transaction(NamedTuple):
    """A transaction as it stands. Amounts in minor units; the last two are None unless COMPLETED."""

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
    effective_at: datetime | None
    balance_after: int | None


COLUMNS = """t.uid, t.user_id, t.type, t.amount, t.requested_at, t.status, t.reason, t.accepted_at, t.settled_at,
    t.accept_order, t.lane"""
VIEW = (
    f"SELECT {COLUMNS}, entry.effective_at, entry.balance_after FROM transactions t LEFT JOIN ledger entry USING (uid)"
)


def transaction_of(row: Any) -> Transaction:
    uid, user_id, type_, amount, requested_at, status, *rest = row
    return Transaction(uid, user_id, Type(type_), amount, requested_at, Status(status), *rest)


# Acceptance numbers are taken in the order sent, rows inserted in uid order: two batches with the same uids in
# opposite orders would deadlock otherwise. NOT EXISTS spares a repeat the wait for whoever is settling that row.
# now(), the start of the transaction, judges timestamps: _AHEAD must say the same of them a moment later.
_ACCEPT = text(f"""
    WITH asked AS MATERIALIZED (
        SELECT uid, user_id, type, amount, requested_at, request_id,
               nextval('transactions_accept_order_seq') AS accept_order
        FROM unnest(CAST(:uids AS uuid[]), CAST(:user_ids AS bigint[]), CAST(:types AS text[]),
                    CAST(:amounts AS bigint[]), CAST(:requested_ats AS timestamptz[]),
                    CAST(:request_ids AS text[]))
             WITH ORDINALITY AS asked (uid, user_id, type, amount, requested_at, request_id, position)
        ORDER BY position
    ), clock AS MATERIALIZED (SELECT clock_timestamp() AS moment)
    INSERT INTO transactions AS t
        (uid, user_id, type, amount, requested_at, accept_order, accepted_at, request_id)
    SELECT asked.uid, asked.user_id, asked.type, asked.amount, asked.requested_at, asked.accept_order,
           clock.moment, asked.request_id
    FROM asked JOIN users ON users.id = asked.user_id CROSS JOIN clock
    WHERE NOT EXISTS (SELECT FROM transactions known WHERE known.uid = asked.uid)
      AND (asked.requested_at IS NULL OR asked.requested_at <= now() + interval '60 seconds')
    ORDER BY asked.uid, asked.accept_order
    ON CONFLICT (uid) DO NOTHING
    RETURNING {COLUMNS}, NULL, NULL
""")


def insert_pending(connection: Connection, requests: Sequence[Request]) -> dict[UUID, Transaction]:
    """Insert those requests whose uid is new, whose user exists and whose timestamp is not ahead."""
    rows = connection.execute(
        _ACCEPT,
        {
            "uids": array(r.uid for r in requests),
            "user_ids": array(r.user_id for r in requests),
            "types": array(r.type for r in requests),
            "amounts": array(r.amount for r in requests),
            "requested_ats": array(r.requested_at for r in requests),
            "request_ids": text_array(r.request_id for r in requests),
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


class PendingRow(NamedTuple):
    """A row to settle; `behind_parked` says that an earlier one of its user is parked."""

    pending: Pending
    accept_order: int
    attempts: int
    behind_parked: bool


_READ_PENDING = """
    SELECT t.uid, t.user_id, t.type, t.amount, t.requested_at, t.accepted_at, t.request_id, t.accept_order,
           t.attempts,
           EXISTS (SELECT FROM transactions parked
                   WHERE parked.user_id = t.user_id AND parked.accept_order < t.accept_order
                     AND parked.status = 'PENDING' AND parked.parked_at IS NOT NULL) AS behind_parked
    FROM transactions t
    WHERE t.lane = :lane AND t.status = 'PENDING' AND t.parked_at IS NULL {of_user}
    ORDER BY t.accept_order LIMIT :limit
"""
_READ_LANE = text(_READ_PENDING.format(of_user=""))
_READ_USER = text(_READ_PENDING.format(of_user="AND t.user_id = :user_id"))


def read_pending(connection: Connection, lane: int, limit: int, user_id: int | None = None) -> list[PendingRow]:
    """The lane's (or one user's) next unparked PENDING rows in acceptance order."""
    statement = _READ_LANE if user_id is None else _READ_USER
    parameters = {"lane": lane, "limit": limit}
    if user_id is not None:
        parameters["user_id"] = user_id
    return [
        PendingRow(
            Pending(r.uid, r.user_id, Type(r.type), r.amount, r.requested_at, r.accepted_at, r.request_id),
            r.accept_order,
            r.attempts,
            r.behind_parked,
        )
        for r in connection.execute(statement, parameters)
    ]


_PENDING_USERS = text("""
    SELECT user_id FROM transactions WHERE lane = :lane AND status = 'PENDING' AND parked_at IS NULL
    GROUP BY user_id ORDER BY min(accept_order) LIMIT :limit
""")


def find_pending_users(connection: Connection, lane: int, limit: int) -> list[int]:
    """The users with unparked PENDING rows in the lane, by their first such row."""
    return list(connection.scalars(_PENDING_USERS, {"lane": lane, "limit": limit}))


_MAKE_FINAL = text("""
    UPDATE transactions t
    SET status = outcome.status, reason = outcome.reason, settled_at = :moment, last_error = NULL
    FROM unnest(CAST(:uids AS uuid[]), CAST(:statuses AS text[]), CAST(:reasons AS text[]))
        AS outcome (uid, status, reason)
    WHERE t.uid = outcome.uid AND t.status = 'PENDING'
""")


def make_final(connection: Connection, outcomes: Sequence[Outcome], moment: datetime) -> int:
    """Write the outcomes' statuses on the rows that are still PENDING; the number of rows written."""
    result = connection.execute(
        _MAKE_FINAL,
        {
            "uids": array(o.pending.uid for o in outcomes),
            "statuses": array(o.status for o in outcomes),
            "reasons": array(o.reason for o in outcomes),
            "moment": moment,
        },
    )
    return result.rowcount


_PARK = text("""
    UPDATE transactions
    SET parked_at = clock_timestamp(), attempts = attempts + :failures, last_error = :error
    WHERE uid = ANY(CAST(:uids AS uuid[])) AND status = 'PENDING' AND parked_at IS NULL
""")


def park(connection: Connection, uids: Iterable[UUID], error: str, *, failed: bool) -> int:
    """Park rows: those that failed themselves, or those that wait behind such a one."""
    parameters = {"uids": array(uids), "error": error, "failures": int(failed)}
    return connection.execute(_PARK, parameters).rowcount


_RELEASE = text("""
    UPDATE transactions SET parked_at = NULL
    WHERE user_id = :user_id AND status = 'PENDING' AND parked_at IS NOT NULL
      AND accept_order <= :through RETURNING uid
""")


def release(connection: Connection, user_id: int, through: int) -> int:
    """Unpark a user's rows up to an acceptance number; the number of rows."""
    return len(connection.execute(_RELEASE, {"user_id": user_id, "through": through}).all())


class ParkedRow(NamedTuple):
    """A parked transaction. `attempts` is how often settling it has failed: 0 for one that waits behind."""

    uid: UUID
    user_id: int
    lane: int
    accept_order: int
    amount: int
    type: str
    parked_at: datetime
    attempts: int
    last_error: str | None


_PARKED = """
    SELECT uid, user_id, lane, accept_order, amount, type, parked_at, attempts, last_error
    FROM transactions WHERE status = 'PENDING' AND parked_at IS NOT NULL
"""
_LIST_PARKED = text(f"{_PARKED} ORDER BY user_id, accept_order LIMIT :limit")
_FIND_PARKED = text(f"{_PARKED} AND uid = CAST(:uid AS uuid)")
_DUE_HEADS = text(f"""
    SELECT * FROM (
        SELECT DISTINCT ON (user_id) * FROM ({_PARKED}) AS parked ORDER BY user_id, accept_order
    ) AS head
    WHERE (attempts = 0
       OR parked_at + least(interval '1 minute' * power(2, least(attempts, 10) - 1), interval '1 hour')
          <= clock_timestamp())
      AND NOT EXISTS (SELECT FROM transactions released
                      WHERE released.lane = head.lane AND released.user_id = head.user_id
                        AND released.accept_order < head.accept_order
                        AND released.status = 'PENDING' AND released.parked_at IS NULL)
    ORDER BY parked_at LIMIT :limit
""")


def list_parked(connection: Connection, limit: int) -> list[ParkedRow]:
    """Parked transactions, by user and acceptance."""
    return [ParkedRow(*row) for row in connection.execute(_LIST_PARKED, {"limit": limit})]


def find_parked(connection: Connection, uid: UUID) -> ParkedRow | None:
    row = connection.execute(_FIND_PARKED, {"uid": str(uid)}).one_or_none()
    return ParkedRow(*row) if row else None


def find_due_heads(connection: Connection, limit: int) -> list[ParkedRow]:
    """Each user's first parked row, where its back-off (a minute, doubling to an hour) is over.

    Not while one before it, released, is still to be settled.
    """
    return [ParkedRow(*row) for row in connection.execute(_DUE_HEADS, {"limit": limit})]


_OVERDUE = text("""
    SELECT lane.lane FROM generate_series(0, :lanes - 1) AS lane (lane), LATERAL (
        SELECT accepted_at FROM transactions
        WHERE transactions.lane = CAST(lane.lane AS smallint)
          AND status = 'PENDING' AND parked_at IS NULL
        ORDER BY accept_order LIMIT 1
    ) AS oldest
    WHERE oldest.accepted_at NOT BETWEEN clock_timestamp() - make_interval(secs => :seconds) AND clock_timestamp()
""")


def find_overdue_lanes(connection: Connection, lanes: int, seconds: float) -> list[int]:
    """The lanes whose oldest unparked PENDING row was accepted longer ago than that.

    Or in the future: then the clock has stepped back, and nobody knows how long the row has waited.
    """
    return list(connection.scalars(_OVERDUE, {"lanes": lanes, "seconds": seconds}))


class Backlog(NamedTuple):
    """Unparked PENDING rows, the oldest one's age in seconds, parked rows."""

    pending: int
    oldest_seconds: float
    parked: int


_BACKLOG = text("""
    SELECT
        (SELECT count(*) FROM transactions WHERE status = 'PENDING' AND parked_at IS NULL) AS pending,
        (SELECT coalesce(extract(epoch FROM clock_timestamp() - min(accepted_at)), 0) FROM (
            SELECT accepted_at FROM generate_series(0, :lanes - 1) AS lane (lane), LATERAL (
                SELECT accepted_at FROM transactions
                WHERE transactions.lane = CAST(lane.lane AS smallint)
                  AND status = 'PENDING' AND parked_at IS NULL
                ORDER BY accept_order LIMIT 1) AS oldest) AS oldest_of_lane) AS oldest_seconds,
        (SELECT count(*) FROM transactions WHERE status = 'PENDING' AND parked_at IS NOT NULL) AS parked
""")


def read_backlog(connection: Connection, lanes: int) -> Backlog:
    row = connection.execute(_BACKLOG, {"lanes": lanes}).one()
    return Backlog(row.pending, max(0.0, float(row.oldest_seconds)), row.parked)
