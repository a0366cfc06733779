"""What our own code cannot settle: found by settling a failed batch in smaller parts, parked, tried again.

A row is parked only while others commit: when all fail alike, the release is bad, not the row. A parked row's
user waits behind it, everybody else goes on, and it is tried again after a minute, then ever more rarely, up to
an hour.
"""

from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from shared import metrics
from shared.database import is_machinery, transaction
from shared.errors import NotFound
from shared.logs import get_logger
from shared.queries import lanes, parked
from shared.queries.lanes import PendingRow
from shared.queries.parked import ParkedRow
from shared.settling import BATCH_ROWS, Slice, settle_batch, settle_lane

EVERYTHING: Final = 2**63 - 1  # beyond every acceptance number

log = get_logger("parking")


@dataclass
class Isolation:
    """How a failed batch came out in parts: rows settled, and the first failing row of each user that has one."""

    settled: int = 0
    failing: list[tuple[PendingRow, str]] = field(default_factory=list)


class LaneFails(Exception):
    """Rows of this lane cannot be settled and none could be parked: a bad release, or a lone bad row."""


def work_lane(lane: int) -> Slice:
    """Settle a lane; where a batch fails by a row's own fault or ours, in parts.

    Raises LaneFails, or what the machinery raised: either way everything unsettled is still PENDING, and the
    sweep comes back to it.
    """
    try:
        return settle_lane(lane)
    except Exception as error:
        if is_machinery(error):
            metrics.BATCH_FAILURES.labels("machinery").inc()
            raise
        metrics.BATCH_FAILURES.labels("own").inc()
        log.exception("a batch failed by its content or our code: settling it in parts", lane=lane)
        return _settle_in_parts(lane)


def _settle_in_parts(lane: int) -> Slice:
    with transaction() as connection:
        # Users, not rows: one whose first row fails may fill a batch by itself, and would hide all others.
        user_ids = lanes.find_pending_users(connection, lane, BATCH_ROWS)
    found = Isolation()
    for user_id in user_ids:
        if not _settle_user(lane, user_id, found):
            return Slice(lane, found.settled, busy=True)
    # One that was parked before has been told apart already: it goes back even when nothing else moves.
    guilty = [(row, error) for row, error in found.failing if found.settled or row.attempts]
    for row, error in guilty:
        with transaction() as connection:
            metrics.PARKED.inc(parked.park(connection, [row.pending.uid], error, failed=True))
        log.error("parked", uid=str(row.pending.uid), user_id=row.pending.user_id, lane=lane, error=error)
    if len(guilty) < len(found.failing):
        raise LaneFails(f"{len(found.failing)} rows of lane {lane} fail and nothing commits: {found.failing[0][1]}")
    return Slice(lane, found.settled, len(guilty))


def _settle_user(lane: int, user_id: int, found: Isolation) -> bool:
    """Settle one user's rows, together or else one by one up to the first that fails. False: lane is busy."""
    limit = BATCH_ROWS
    while True:
        head = _head(lane, user_id)
        if head is None:
            return True
        try:
            batch = settle_batch(lane, user_id, limit)
        except Exception as error:
            if is_machinery(error):
                raise
            if limit == 1:
                found.failing.append((head, repr(error)[:2000]))
                return True
            limit = 1
            continue
        if batch is None:
            return False
        found.settled += len(batch.outcomes)


def _head(lane: int, user_id: int) -> PendingRow | None:
    with transaction() as connection:
        return next(iter(lanes.read_pending(connection, lane, 1, user_id)), None)


def retry_due() -> int:
    """Release what has been parked long enough: a failed row alone, its followers once it is settled."""
    with transaction() as connection:
        heads = parked.find_due_heads(connection, limit=100)
    return sum(_release(head, head.accept_order if head.attempts else EVERYTHING) for head in heads)


def release(uid: UUID) -> int:
    """Release a parked transaction and all that wait behind it; the number of rows.

    Raises NotFound where no parked transaction has this uid. Waits for a busy lane: nobody comes back to it.
    """
    with transaction() as connection:
        row = parked.find_parked(connection, uid)
    if row is None:
        raise NotFound("not_parked", f"There is no parked transaction {uid}.")
    return _release(row, EVERYTHING, wait=True)


def _release(row: ParkedRow, through: int, *, wait: bool = False) -> int:
    """Under the lane's lock, so that no batch is deciding who waits behind whom. Busy: 0, the sweep returns."""
    with transaction() as connection:
        if wait:
            lanes.lock_lane(connection, row.lane)
        elif not lanes.try_lock_lane(connection, row.lane):
            return 0
        released = parked.release(connection, row.user_id, through)
    log.warning("released", uid=str(row.uid), user_id=row.user_id, lane=row.lane, rows=released)
    return released
