"""A lane that fails is settled user by user, and a user who fails row by row: so the row that our code fails on is found.

A row is parked only once others commit: when all fail alike, the release is bad, not the row. A user for whom only the
machinery fails (a lock held elsewhere, a damaged page) is passed over, and never parked.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from shared.batch import SETTLE_BATCH_ROWS, Counts, settle_batch
from shared.database import is_infrastructure_error, may_be_single_user, transaction
from shared.ledger import PendingRow
from shared.parked import park
from shared.queries import lanes as lane_queries

PARTS_SLICE_SECONDS: Final = 15.0  # for settling a lane in parts; what is left over is the next worker's
USER_PAGE_SIZE: Final = 200  # users looked up at once
LAST_USER_ID: Final = 2**63 - 1

_resume_after: dict[int, int] = {}  # of this process: the user at whom settling a lane in parts ended early


class LaneFailed(Exception):
    """Rows of this lane cannot be settled and none could be parked: a bad release, or a lone bad row."""


@dataclass
class Parts:
    """How a lane comes out in parts: its rows, those that fail, and what the machinery raised. `busy`: it was taken."""

    lane: int
    counts: Counts = field(default_factory=Counts)
    busy: bool = False
    failing: list[tuple[PendingRow, str]] = field(default_factory=list)
    passed_over: list[Exception] = field(default_factory=list)


def settle_in_parts(lane: int) -> Parts:
    """Settles a lane user by user, and parks the rows that fail. Raises LaneFailed, or what the machinery raised."""
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
    """The lane's users with rows to settle, once around, from where time ran out before: none is always the last.

    Users, not rows: one user may fill any number of batches.
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
    """Settles one user's rows, together or else one by one up to the first that fails."""
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
    """Parks what fails as soon as something else commits. What was parked before is told apart already."""
    to_park = [(head, error) for head, error in parts.failing if parts.counts.settled or head.attempts]
    parts.failing = [pair for pair in parts.failing if pair not in to_park]
    for head, error in to_park:
        parts.counts += Counts(parked=park(head, error))
