"""Statements on lanes: take some, read what is pending in it, see which are behind."""

from collections.abc import Collection, Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection, text

from shared.database import array
from shared.ledger import Pending
from shared.status import Type

_TRY_LOCK_LANES = text("""
    SELECT lane FROM unnest(CAST(:lanes AS smallint[])) AS lane WHERE pg_try_advisory_xact_lock(7411, lane)
""")
_LOCK_LANE = text("SELECT pg_advisory_xact_lock(7411, :lane)")


def try_lock_lanes(connection: Connection, lanes: Collection[int]) -> list[int]:
    """Take those of the lanes that nobody has, until the end of the transaction; which they are. Never waits."""
    return list(connection.scalars(_TRY_LOCK_LANES, {"lanes": array(lanes)}))


def lock_lane(connection: Connection, lane: int) -> None:
    """Take the lane until the end of the transaction; waits until the one who has it commits."""
    connection.execute(_LOCK_LANE, {"lane": lane})


def hurry(connection: Connection) -> None:
    """Wait for no lock in this transaction longer than a moment."""
    connection.execute(text("SET LOCAL lock_timeout = '200ms'"))


class PendingRow(NamedTuple):
    """A row to settle; `behind_parked` says that an earlier one of its user is parked."""

    pending: Pending
    accept_order: int
    attempts: int
    behind_parked: bool


_READ_PENDING = """
    SELECT t.uid, t.user_id, t.type, t.amount, t.requested_at, t.accepted_at, t.request_id, t.accept_order,
           t.attempts, t.behind_parked
    FROM unnest(CAST(:lanes AS smallint[])) AS lane (lane) CROSS JOIN LATERAL (
        SELECT t.*, EXISTS (SELECT FROM transactions parked
                            WHERE parked.user_id = t.user_id AND parked.accept_order < t.accept_order
                              AND parked.status = 'PENDING' AND parked.parked_at IS NOT NULL) AS behind_parked
        FROM transactions t
        WHERE t.lane = lane.lane AND t.status = 'PENDING' AND t.parked_at IS NULL {of_user}
        ORDER BY t.accept_order LIMIT :limit
    ) AS t
    ORDER BY t.accept_order
"""
_READ_LANES = text(_READ_PENDING.format(of_user=""))
_READ_USER = text(_READ_PENDING.format(of_user="AND t.user_id = :user_id"))


def read_pending(
    connection: Connection, lanes: Collection[int], limit: int, user_id: int | None = None
) -> list[PendingRow]:
    """The next unparked PENDING rows in acceptance order, of one user or all: of each lane at most `limit`."""
    statement = _READ_LANES if user_id is None else _READ_USER
    parameters = {"lanes": array(lanes), "limit": limit}
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


class Head(NamedTuple):
    """A user's first unparked PENDING row. `attempts`: how often it was parked for failing."""

    user_id: int
    uid: UUID
    accept_order: int
    attempts: int


_READ_HEADS = text("""
    SELECT user_id, uid, accept_order, attempts FROM (
        SELECT DISTINCT ON (user_id) user_id, uid, accept_order, attempts FROM transactions
        WHERE lane = :lane AND status = 'PENDING' AND parked_at IS NULL
        ORDER BY user_id, accept_order
    ) AS head
    WHERE accept_order > :after ORDER BY accept_order LIMIT :limit
""")
_FIND_HEAD = text("""
    SELECT user_id, uid, accept_order, attempts FROM transactions
    WHERE lane = :lane AND user_id = :user_id AND status = 'PENDING' AND parked_at IS NULL
    ORDER BY accept_order LIMIT 1
""")


def read_heads(connection: Connection, lane: int, after: int, limit: int) -> list[Head]:
    """The first rows of the lane's users that come after an acceptance number, in acceptance order."""
    return [Head(*row) for row in connection.execute(_READ_HEADS, {"lane": lane, "after": after, "limit": limit})]


def find_head(connection: Connection, lane: int, user_id: int) -> Head | None:
    row = connection.execute(_FIND_HEAD, {"lane": lane, "user_id": user_id}).one_or_none()
    return Head(*row) if row else None


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
    """Unparked PENDING rows, the oldest one's age in seconds, parked rows; the unparked ones of each lane."""

    pending: int
    oldest_seconds: float
    parked: int
    of_lanes: Sequence[int] = ()


_BACKLOG = text("""
    SELECT
        array_agg((
            SELECT count(*) FROM transactions
            WHERE transactions.lane = CAST(lane.lane AS smallint) AND status = 'PENDING' AND parked_at IS NULL
        ) ORDER BY lane.lane) AS of_lanes,
        coalesce(extract(epoch FROM clock_timestamp() - min((
            SELECT accepted_at FROM transactions
            WHERE transactions.lane = CAST(lane.lane AS smallint) AND status = 'PENDING' AND parked_at IS NULL
            ORDER BY accept_order LIMIT 1
        ))), 0) AS oldest_seconds,
        (SELECT count(*) FROM transactions WHERE status = 'PENDING' AND parked_at IS NOT NULL) AS parked
    FROM generate_series(0, :lanes - 1) AS lane (lane)
""")


def read_backlog(connection: Connection, lanes: int) -> Backlog:
    row = connection.execute(_BACKLOG, {"lanes": lanes}).one()
    return Backlog(sum(row.of_lanes), max(0.0, float(row.oldest_seconds)), row.parked, row.of_lanes)
