"""Statements on lanes: lock them, read their pending rows, find overdue lanes, measure the backlog."""

from collections.abc import Collection
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, text

from shared.database import array
from shared.payments.model import LANES, Backlog, Type, lane_of
from shared.payments.rules import Pending, PendingRow

_TRY_LOCK_LANES = text("""
    SELECT lane FROM unnest(CAST(:lanes AS smallint[])) AS lane WHERE pg_try_advisory_xact_lock(7411, lane)
""")
_LOCK_LANE = text("SELECT pg_advisory_xact_lock(7411, :lane)")


def try_lock_lanes(connection: Connection, lanes: Collection[int]) -> list[int]:
    """Locks the free lanes until the end of the transaction. Returns the locked ones. Never waits."""
    return list(connection.scalars(_TRY_LOCK_LANES, {"lanes": array(lanes)}))


def lock_lane(connection: Connection, lane: int) -> None:
    """Locks the lane until the end of the transaction. Waits until the transaction that holds it ends."""
    connection.execute(_LOCK_LANE, {"lane": lane})


def set_lock_timeout(connection: Connection) -> None:
    """Sets the lock time-out of this transaction to 200 ms."""
    connection.execute(text("SET LOCAL lock_timeout = '200ms'"))


_WAITS: Final = "t.status = 'PENDING' AND t.parked_at IS NULL"
_COLUMNS: Final = """t.uid, t.user_id, t.type, t.amount, t.requested_at, t.accepted_at, t.request_id, t.accept_order,
    t.attempts, t.bulk, EXISTS (
        SELECT FROM transactions parked
        WHERE parked.user_id = t.user_id AND parked.accept_order < t.accept_order
          AND parked.status = 'PENDING' AND parked.parked_at IS NOT NULL) AS behind_parked"""
# Single requests and lists are read separately, so that a long list does not slow down reading single requests.
_READ_LANES = text(f"""
    SELECT row.* FROM unnest(CAST(:lanes AS smallint[])) AS lane (lane)
    CROSS JOIN LATERAL (
        (SELECT {_COLUMNS} FROM transactions t WHERE t.lane = lane.lane AND NOT t.bulk AND {_WAITS}
         ORDER BY t.accept_order LIMIT :limit)
        UNION ALL
        (SELECT {_COLUMNS} FROM transactions t WHERE t.lane = lane.lane AND t.bulk AND {_WAITS}
         ORDER BY t.accept_order LIMIT :limit)
    ) AS row
    ORDER BY row.accept_order
""")
_READ_USER = text(f"""
    (SELECT {_COLUMNS} FROM transactions t
     WHERE t.lane = :lane AND t.user_id = :user_id AND NOT t.bulk AND {_WAITS} ORDER BY t.accept_order LIMIT :limit)
    UNION ALL
    (SELECT {_COLUMNS} FROM transactions t
     WHERE t.lane = :lane AND t.user_id = :user_id AND t.bulk AND {_WAITS} ORDER BY t.accept_order LIMIT :limit)
    ORDER BY accept_order LIMIT :limit
""")


def read_pending(connection: Connection, lanes: Collection[int], limit: int) -> list[PendingRow]:
    """Returns the next unparked PENDING rows of lanes in acceptance order.

    For each lane these are at most `limit` single requests and at most `limit` rows of lists.
    """
    return [_pending_row(row) for row in connection.execute(_READ_LANES, {"lanes": array(lanes), "limit": limit})]


def read_pending_of_user(connection: Connection, user_id: int, limit: int) -> list[PendingRow]:
    """Returns a user's next unparked PENDING rows in acceptance order, at most `limit`."""
    parameters = {"lane": lane_of(user_id), "user_id": user_id, "limit": limit}
    return [_pending_row(row) for row in connection.execute(_READ_USER, parameters)]


def _pending_row(row: Any) -> PendingRow:
    uid, user_id, type_, amount, requested_at, accepted_at, request_id, *rest = row
    return PendingRow(Pending(uid, user_id, Type(type_), amount, requested_at, accepted_at, request_id), *rest)


_FIRST: Final = f"""
    SELECT t.accepted_at FROM transactions t
    WHERE t.lane = CAST(lane.lane AS smallint) AND {{kind}} AND {_WAITS} ORDER BY t.accept_order LIMIT 1
"""
# One row for each lane: the acceptance times of its first single request and of its first row of a list.
_FIRSTS: Final = f"""
    SELECT lane.lane, single.accepted_at AS single_at, bulk.accepted_at AS bulk_at
    FROM generate_series(0, :lanes - 1) AS lane (lane)
    LEFT JOIN LATERAL ({_FIRST.format(kind="NOT t.bulk")}) AS single ON true
    LEFT JOIN LATERAL ({_FIRST.format(kind="t.bulk")}) AS bulk ON true
"""
_FIND_WORK = text(_FIRSTS)


class Work(NamedTuple):
    """The lanes with single requests to settle, and the lanes with rows of lists to settle."""

    single: list[int]
    bulk: list[int]


def find_work(connection: Connection) -> Work:
    """Returns the lanes that have unparked PENDING rows."""
    rows = connection.execute(_FIND_WORK, {"lanes": LANES}).all()
    return Work([row.lane for row in rows if row.single_at], [row.lane for row in rows if row.bulk_at])


# Steps from user to user by the index, so the cost does not depend on the number of a user's rows.
_READ_USERS = text(f"""
    WITH RECURSIVE waiting (user_id) AS (
        SELECT CAST(:after AS bigint)
        UNION ALL
        SELECT (SELECT t.user_id FROM transactions t WHERE t.lane = :lane AND t.user_id > waiting.user_id AND {_WAITS}
                ORDER BY t.user_id LIMIT 1)
        FROM waiting WHERE waiting.user_id IS NOT NULL
    )
    SELECT user_id FROM waiting WHERE user_id > :after LIMIT :limit
""")


def read_users(connection: Connection, lane: int, after: int, limit: int) -> list[int]:
    """Returns the ids of a lane's users with unparked PENDING rows, in ascending order, beginning after an id."""
    return list(connection.scalars(_READ_USERS, {"lane": lane, "after": after, "limit": limit}))


_OVERDUE = text(f"""
    SELECT lane FROM ({_FIRSTS}) AS first
    WHERE single_at NOT BETWEEN clock_timestamp() - make_interval(secs => :seconds) AND clock_timestamp()
       OR bulk_at NOT BETWEEN clock_timestamp() - make_interval(secs => :seconds) AND clock_timestamp()
""")


def find_overdue_lanes(connection: Connection, lanes: int, seconds: float) -> list[int]:
    """Returns the lanes whose oldest unparked PENDING row was accepted more than `seconds` ago, or in the future.

    A time in the future means that the clock has stepped back, so the age of the row is unknown.
    """
    return list(connection.scalars(_OVERDUE, {"lanes": lanes, "seconds": seconds}))


MAX_PARKED_COUNTED: Final = 100_000
_BACKLOG = text(f"""
    SELECT
        array_agg((
            SELECT count(*) FROM transactions t WHERE t.lane = CAST(first.lane AS smallint) AND {_WAITS}
        ) ORDER BY first.lane) AS of_lanes,
        coalesce(extract(epoch FROM clock_timestamp() - min(least(single_at, bulk_at))), 0) AS oldest_seconds,
        (SELECT count(*) FROM (
            SELECT FROM transactions WHERE status = 'PENDING' AND parked_at IS NOT NULL
            ORDER BY user_id LIMIT {MAX_PARKED_COUNTED}) AS parked) AS parked
    FROM ({_FIRSTS}) AS first
""")


def read_backlog(connection: Connection, lanes: int) -> Backlog:
    """Returns the numbers of unparked and parked PENDING rows, the oldest age, and the unparked rows by lane."""
    row = connection.execute(_BACKLOG, {"lanes": lanes}).one()
    return Backlog(sum(row.of_lanes), max(0.0, float(row.oldest_seconds)), row.parked, row.of_lanes)
