"""Finds the rows on which our code fails: settles a failed lane user by user, and a failed user row by row.

A row is parked only after other rows commit: if all rows fail, the release is bad, not a row. A user with an
infrastructure error (a lock held elsewhere, a damaged page) is skipped and never parked.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from shared.database import is_infrastructure_error, may_be_single_user, transaction
from shared.payments.batch import SETTLE_BATCH_ROWS, Counts, settle_batch
from shared.payments.parked import park
from shared.payments.queries import lanes as lane_queries
from shared.payments.rules import PendingRow

PARTS_SLICE_SECONDS: Final = 15.0  # for settling a lane in parts; the next worker settles the rest
USER_PAGE_SIZE: Final = 200  # users of one statement
LAST_USER_ID: Final = 2**63 - 1

_resume_after: dict[int, int] = {}  # by lane, for this process: the last user of a run in parts that ended early


class LaneFailed(Exception):
    """Rows of a lane fail and none could be parked: the release is bad, or no other row was there to commit."""


@dataclass
class Parts:
    """The result of settling a lane in parts. `busy`: another process held the lane.

    `failing`: rows that fail, with their errors. `passed_over`: infrastructure errors of skipped users.
    """

    lane: int
    counts: Counts = field(default_factory=Counts)
    busy: bool = False
    failing: list[tuple[PendingRow, str]] = field(default_factory=list)
    passed_over: list[Exception] = field(default_factory=list)


def settle_in_parts(lane: int) -> Parts:
    """Settles a lane user by user, and parks the rows that fail. Returns the result.

    Raises LaneFailed if rows fail and nothing commits, or the first infrastructure error.
    """
    parts = Parts(lane)
    deadline = time.monotonic() + PARTS_SLICE_SECONDS
    for user_id in _users(lane):
        _settle_user(user_id, parts)
        _park_failing(parts)
        if parts.busy or time.monotonic() > deadline:
            _resume_after[lane] = user_id
            break
    if parts.failing:
        raise LaneFailed(f"{len(parts.failing)} rows of lane {lane} fail and nothing commits: {parts.failing[0][1]}")
    if parts.passed_over:
        raise parts.passed_over[0]
    return parts


def _users(lane: int) -> Iterator[int]:
    """Yields the lane's users with rows to settle, each once. Begins after the user at which the last run ended.

    So no user is always the last.

    It pages by user, not by row, because one user may fill any number of batches.
    """
    start = _resume_after.pop(lane, 0)
    yield from _users_between(lane, start, LAST_USER_ID)
    yield from _users_between(lane, 0, start)


def _users_between(lane: int, after: int, through: int) -> Iterator[int]:
    while after < through:
        with transaction() as connection:
            users = lane_queries.read_users(connection, lane, after, USER_PAGE_SIZE)
        yield from (user_id for user_id in users if user_id <= through)
        after = users[-1] if len(users) == USER_PAGE_SIZE else through


def _settle_user(user_id: int, parts: Parts) -> None:
    """Settles one user's rows together; if that fails, one by one up to the first that fails."""
    limit = SETTLE_BATCH_ROWS
    while head := _first_row(user_id):
        try:
            batch = settle_batch([parts.lane], user_id, 1 if head.attempts else limit)
        except Exception as error:
            if is_infrastructure_error(error):
                if not may_be_single_user(error):
                    raise
                parts.passed_over.append(error)
                return
            if limit == 1 or head.attempts:
                parts.failing.append((head, repr(error)[:2000]))
                return
            limit = 1
            continue
        if batch is None:
            parts.busy = True
            return
        parts.counts += batch.counts


def _first_row(user_id: int) -> PendingRow | None:
    with transaction() as connection:
        return next(iter(lane_queries.read_pending_of_user(connection, user_id, 1)), None)


def _park_failing(parts: Parts) -> None:
    """Parks failing rows once another row has committed. A row that has failed before needs no such proof."""
    to_park = [(head, error) for head, error in parts.failing if parts.counts.settled or head.attempts]
    parts.failing = [pair for pair in parts.failing if pair not in to_park]
    for head, error in to_park:
        parts.counts += Counts(parked=park(head, error))
