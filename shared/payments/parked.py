"""Parks rows that our code cannot settle, and releases them. Later rows of the same user wait; other users do not.

A parked row is released for a retry after a minute, then after growing pauses up to an hour. An operator can release it
at once.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy.exc import DBAPIError

from shared import metrics, operator_actions
from shared.database import is_lock_timeout, may_be_single_user, set_statement_timeout, transaction
from shared.errors import NotFound
from shared.logs import get_logger
from shared.operator_actions import SERVICE
from shared.payments.model import LANES, ErrorCount, ParkedRow, lane_of
from shared.payments.queries import lanes, parked
from shared.payments.queries.parked import ParkedUsers
from shared.payments.rules import PendingRow
from shared.server import read_clock

RETRY_PAGE_SIZE: Final = 100  # users of one statement
RETRY_SLICE_SECONDS: Final = 1.0
RELEASE_BATCH_ROWS: Final = 5000  # of one commit
RELEASE_PAGE_SIZE: Final = 5000  # users of one statement
FIND_USERS_TIMEOUT_SECONDS: Final = 60
MAX_BIGINT: Final = 2**63 - 1  # above every acceptance number

log = get_logger("parked")


def park(row: PendingRow, error: str) -> int:
    """Parks a failed row. Returns the number of rows: 0 if another process has settled or parked it."""
    with transaction() as connection:
        count = parked.park(connection, [row.pending.uid], error, failed=True)
    metrics.PARKED.inc(count)
    user_id = row.pending.user_id
    log.error("parked", uid=str(row.pending.uid), user_id=user_id, lane=lane_of(user_id), error=error)
    return count


class Listed(NamedTuple):
    """The first parked rows by user and acceptance, the total number, and the most frequent errors."""

    rows: list[ParkedRow]
    in_all: int
    errors: list[ErrorCount]


def list_parked(limit: int, error_limit: int) -> Listed:
    """Returns the first parked rows, their total and their errors. It counts at most MAX_PARKED_COUNTED rows."""
    with transaction() as connection:
        rows = parked.list_parked(connection, limit)
        errors = parked.count_errors(connection, error_limit) if error_limit else []
        in_all = lanes.read_backlog(connection, LANES).parked if len(rows) == limit else len(rows)
    return Listed(rows, in_all, errors)


@dataclass
class RetryPosition:
    """The position of a process in the users with parked rows: the last user's id, 0 at the beginning."""

    after: int = 0


def retry_due(position: RetryPosition | None = None) -> int:
    """Releases rows whose pause is over: a failed row alone, and its followers once it is settled.

    Returns the number of rows. Begins after the position and moves it, because a round through all users may take
    several calls.
    """
    position = position or RetryPosition()
    deadline = time.monotonic() + RETRY_SLICE_SECONDS
    released = 0
    while True:
        with transaction() as connection:
            heads, position.after = parked.find_due_heads(connection, position.after, RETRY_PAGE_SIZE)
        released += sum(_retry(head) for head in heads)
        if not position.after or time.monotonic() > deadline:
            return released


def _retry(head: ParkedRow) -> int:
    """Releases one user's rows. Returns their number; 0 on an error of this user, so that other users are released."""
    try:
        with transaction() as connection:
            # The lane lock keeps a batch from parking followers at the same time. If it is busy, the sweep retries.
            if not lanes.try_lock_lanes(connection, [head.lane]):
                return 0
            lanes.set_lock_timeout(connection)
            through = head.accept_order if head.attempts else MAX_BIGINT
            released = parked.release(connection, head.user_id, through, RELEASE_BATCH_ROWS)
    except Exception as error:
        if not may_be_single_user(error):
            raise
        log.warning("parked row not released, retried", uid=str(head.uid), error=repr(error))
        return 0
    _log_released(head, released)
    return released


def release(uid: UUID, actor: str = SERVICE) -> int:
    """Releases a parked transaction and all other parked rows of its user. Returns the number of rows.

    Waits for a busy lane up to the lock time-out, because no process would retry.
    Raises NotFound if no parked transaction has this uid.
    """
    with transaction() as connection:
        row = parked.find_parked(connection, uid)
        before = read_clock(connection)
    if row is None:
        raise NotFound("not_parked", f"There is no parked transaction {uid}.")
    released = sum(_release_users(row.lane, [row.user_id], before, ReleaseRequest(actor, str(uid))))
    _log_released(row, released)
    return released


class ReleaseRequest(NamedTuple):
    """The actor of a release, and its target: a uid, `all`, or the text of an error."""

    actor: str
    target: str


class Released(NamedTuple):
    """The progress of a release: rows released so far, and users left parked because their lane was busy."""

    rows: int = 0
    busy_users: int = 0


def release_matching(error: str, actor: str = SERVICE) -> Iterator[Released]:
    """Releases the users whose first parked row has this text in its error ("" for all). Yields the counts so far.

    A commit covers one lane and a bounded number of rows. A user's rows are released in their order. If a lane stays
    busy, its users are counted and left parked.
    """
    request = ReleaseRequest(actor, f"error: {error}" if error else "all")
    with transaction() as connection:
        before = read_clock(connection)
    progress = Released()
    for lane in range(LANES):
        for users in _find_users(ParkedUsers(lane, error, before)):
            try:
                for rows in _release_users(lane, users, before, request):
                    progress = progress._replace(rows=progress.rows + rows)
                    yield progress
            except DBAPIError as failure:
                if not is_lock_timeout(failure):
                    raise
                progress = progress._replace(busy_users=progress.busy_users + len(users))
    log.warning("parked transactions released", target=request.target, **progress._asdict())
    yield progress


def _find_users(criteria: ParkedUsers) -> Iterator[list[int]]:
    after = 0
    while True:
        with transaction() as connection:
            set_statement_timeout(connection, FIND_USERS_TIMEOUT_SECONDS)
            users = parked.find_users(connection, criteria, after, RELEASE_PAGE_SIZE)
        if not users:
            return
        yield users
        after = users[-1]


def _release_users(lane: int, users: Sequence[int], before: datetime, request: ReleaseRequest) -> Iterator[int]:
    """Yields the number of rows of each commit."""
    while True:
        with transaction() as connection:
            lanes.lock_lane(connection, lane)
            count = parked.release_users(connection, users, before, RELEASE_BATCH_ROWS)
            if count:
                details = {"lane": lane, "rows": count}
                operator_actions.record(connection, request.actor, "parked.release", request.target, **details)
        yield count
        if count < RELEASE_BATCH_ROWS:
            return


def _log_released(row: ParkedRow, released: int) -> None:
    log.warning("released", uid=str(row.uid), user_id=row.user_id, lane=row.lane, rows=released)
