"""Statements on parked transactions: park, release, list, and find the rows due for a retry."""

from collections.abc import Iterable
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, text

from shared.database import array
from shared.payments.model import ErrorCount, ParkedRow

_PARK = text("""
    UPDATE transactions
    SET parked_at = clock_timestamp(), attempts = attempts + :failures, last_error = :error
    WHERE uid = ANY(CAST(:uids AS uuid[])) AND status = 'PENDING' AND parked_at IS NULL
""")


def park(connection: Connection, uids: Iterable[UUID], error: str, *, failed: bool) -> int:
    """Parks PENDING rows that failed, or that wait behind a parked row. Returns the number of rows."""
    parameters = {"uids": array(uids), "error": error, "failures": int(failed)}
    return connection.execute(_PARK, parameters).rowcount


_RELEASE = text("""
    UPDATE transactions SET parked_at = NULL
    WHERE status = 'PENDING' AND uid IN (
        SELECT uid FROM transactions
        WHERE user_id = :user_id AND status = 'PENDING' AND parked_at IS NOT NULL AND accept_order <= :through
        ORDER BY accept_order LIMIT :limit)
""")


def release(connection: Connection, user_id: int, through: int, limit: int) -> int:
    """Releases a user's first rows up to an acceptance number, at most `limit`. Returns the number of rows."""
    parameters = {"user_id": user_id, "through": through, "limit": limit}
    return connection.execute(_RELEASE, parameters).rowcount


_RELEASE_USERS = text("""
    UPDATE transactions SET parked_at = NULL
    WHERE status = 'PENDING' AND uid IN (
        SELECT uid FROM transactions
        WHERE user_id = ANY(CAST(:user_ids AS bigint[])) AND status = 'PENDING' AND parked_at <= :before
        ORDER BY user_id, accept_order LIMIT :limit)
""")


def release_users(connection: Connection, user_ids: Iterable[int], before: datetime, limit: int) -> int:
    """Releases the first rows of these users, at most `limit`. Returns the number of rows.

    A row that was parked again after `before` stays parked, so that repeated calls come to an end.
    """
    parameters = {"user_ids": array(user_ids), "before": before, "limit": limit}
    return connection.execute(_RELEASE_USERS, parameters).rowcount


_PARKED = """
    SELECT uid, user_id, lane, accept_order, amount, type, parked_at, attempts, last_error
    FROM transactions WHERE status = 'PENDING' AND parked_at IS NOT NULL
"""
_LIST_PARKED = text(f"{_PARKED} ORDER BY user_id, accept_order LIMIT :limit")
_FIND_PARKED = text(f"{_PARKED} AND uid = CAST(:uid AS uuid)")
_FIND_USERS = text("""
    SELECT user_id FROM (
        SELECT DISTINCT ON (user_id) user_id, last_error FROM transactions
        WHERE status = 'PENDING' AND parked_at <= :before AND user_id > :after AND lane = :lane
        ORDER BY user_id, accept_order
    ) AS head
    WHERE position(lower(:error) IN lower(coalesce(last_error, ''))) > 0
    ORDER BY user_id LIMIT :limit
""")
_COUNT_ERRORS = text("""
    SELECT left(coalesce(last_error, ''), 200) AS error, count(*) AS rows, count(DISTINCT user_id) AS users
    FROM transactions WHERE status = 'PENDING' AND parked_at IS NOT NULL
    GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT :limit
""")
# A released row of this user that is not settled yet. The row comparison forces the only index with this order.
_RELEASED: Final = """
    SELECT FROM transactions t
    WHERE (t.lane, t.user_id, t.bulk, t.accept_order) >= (parked.lane, parked.user_id, {bulk}, 0)
      AND (t.lane, t.user_id, t.bulk, t.accept_order) < (parked.lane, parked.user_id, {bulk}, parked.accept_order)
      AND t.status = 'PENDING' AND t.parked_at IS NULL
"""
# Steps from user to user by the index, so the cost does not depend on the number of a user's rows.
_HEADS = text(f"""
    WITH RECURSIVE head AS (
        (SELECT * FROM ({_PARKED} AND user_id > :after ORDER BY user_id, accept_order LIMIT 1) AS first)
        UNION ALL
        SELECT next.* FROM head CROSS JOIN LATERAL (
            {_PARKED} AND transactions.user_id > head.user_id ORDER BY user_id, accept_order LIMIT 1
        ) AS next
    )
    SELECT parked.*, (
        parked.attempts = 0
        OR parked.parked_at + least(interval '1 minute' * power(2, least(parked.attempts, 10) - 1), interval '1 hour')
           <= clock_timestamp()
    ) AND NOT EXISTS ({_RELEASED.format(bulk="false")}) AND NOT EXISTS ({_RELEASED.format(bulk="true")}) AS is_due
    FROM (SELECT * FROM head LIMIT :users) AS parked
""")


def list_parked(connection: Connection, limit: int) -> list[ParkedRow]:
    """Returns the first parked transactions, by user and acceptance."""
    return [ParkedRow(*row) for row in connection.execute(_LIST_PARKED, {"limit": limit})]


def find_parked(connection: Connection, uid: UUID) -> ParkedRow | None:
    """Returns the parked transaction with this uid, or None."""
    row = connection.execute(_FIND_PARKED, {"uid": str(uid)}).one_or_none()
    return ParkedRow(*row) if row else None


class ParkedUsers(NamedTuple):
    """Selects users of a lane whose first parked row was parked by `before` (UTC) and has a text in its error."""

    lane: int
    error: str  # "" for any
    before: datetime


def find_users(connection: Connection, criteria: ParkedUsers, after: int, limit: int) -> list[int]:
    """Returns the ids of the selected users above `after`, in ascending order."""
    return list(connection.scalars(_FIND_USERS, {**criteria._asdict(), "after": after, "limit": limit}))


def count_errors(connection: Connection, limit: int) -> list[ErrorCount]:
    """Returns the errors of parked rows with their numbers, the most frequent first."""
    return [ErrorCount(*row) for row in connection.execute(_COUNT_ERRORS, {"limit": limit})]


def find_due_heads(connection: Connection, after: int, users: int) -> tuple[list[ParkedRow], int]:
    """Returns the due first rows of the next users with parked rows, and the last user's id (0 if no user follows).

    A first row is due if its back-off (a minute, doubled up to an hour) is over, and no earlier released row of its
    user is still PENDING.
    """
    rows = connection.execute(_HEADS, {"after": after, "users": users}).all()
    due = [ParkedRow(*row[:-1]) for row in rows if row.is_due]
    return due, rows[-1].user_id if len(rows) == users else 0
