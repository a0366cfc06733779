"""What our own code cannot settle: found by settling a failed lane user by user, parked, tried again.

A row is parked only once others commit: when all fail alike, the release is bad, not the row. A parked row's user
waits behind it, everybody else goes on, and it is tried again after a minute, then ever more rarely, up to an hour.
A user for whom only the machinery fails (a lock held elsewhere, a damaged page) is passed over, and never parked.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy.exc import DBAPIError

from shared import metrics
from shared.database import allow, is_lock_timeout, is_machinery, may_be_one_users, transaction
from shared.errors import NotFound
from shared.logs import get_logger
from shared.queries import actions, parked
from shared.queries import lanes as lane_queries
from shared.queries.lanes import Head
from shared.queries.parked import ParkedRow, ParkedUsers
from shared.queries.server import read_clock
from shared.settling import BATCH_ROWS, Slice, settle_batch, settle_lanes
from shared.status import LANES

PARTS_SECONDS: Final = 15.0  # for settling a lane in parts; what is left over is the next worker's
HEADS: Final = 200  # users looked up at once
RELEASE_ROWS: Final = 5000  # in one commit
RELEASE_USERS: Final = 5000  # looked up at once
FIND_SECONDS: Final = 60
EVERYTHING: Final = 2**63 - 1  # beyond every acceptance number

log = get_logger("parking")


class LaneFails(Exception):
    """Rows of this lane cannot be settled and none could be parked: a bad release, or a lone bad row."""


@dataclass
class Parts:
    """How a lane comes out in parts: rows settled and parked, rows that fail, and what the machinery raised."""

    lane: int
    settled: int = 0
    rejected: int = 0
    parked: int = 0
    busy: bool = False
    failing: list[tuple[Head, str]] = field(default_factory=list)
    passed_over: list[Exception] = field(default_factory=list)


def work_lanes(lanes: Sequence[int]) -> Slice:
    """Settle lanes; where a batch fails by a row's own fault, ours, or for one user alone: each lane in parts.

    Raises LaneFails, or what the machinery raised: either way everything unsettled is still PENDING, and the
    sweep comes back to it.
    """
    try:
        return settle_lanes(lanes)
    except Exception as error:
        machinery = is_machinery(error)
        metrics.BATCH_FAILURES.labels("machinery" if machinery else "own").inc()
        if machinery and not may_be_one_users(error):
            raise
        log.exception("a batch failed, maybe by one user's rows: settling in parts", lanes=list(lanes))
    return _settle_each(lanes) if len(lanes) > 1 else _settle_in_parts(lanes[0])


def _settle_each(lanes: Sequence[int]) -> Slice:
    """Lane by lane: what one of them raises keeps no other from being settled."""
    done = Slice(list(lanes))
    failures: list[Exception] = []
    for lane in lanes:
        try:
            part = work_lanes([lane])
        except Exception as error:
            failures.append(error)
        else:
            done.settled += part.settled
            done.rejected += part.rejected
            done.parked += part.parked
    if failures:
        raise failures[0]
    return done


def _settle_in_parts(lane: int) -> Slice:
    parts = Parts(lane)
    ends = time.monotonic() + PARTS_SECONDS
    for head in _heads(lane):
        _settle_user(head, parts)
        _park_failing(parts)
        if parts.busy or time.monotonic() > ends:
            break
    if parts.failing:
        raise LaneFails(f"{len(parts.failing)} rows of lane {lane} fail and nothing commits: {parts.failing[0][1]}")
    if parts.passed_over:
        raise parts.passed_over[0]
    return Slice([lane], parts.settled, parts.parked, parts.busy, parts.rejected)


def _heads(lane: int) -> Iterator[Head]:
    """Each user's first row, the longest waiting first. Users, not rows: one user may fill any number of batches."""
    after = 0
    while True:
        with transaction() as connection:
            heads = lane_queries.read_heads(connection, lane, after, HEADS)
        yield from heads
        if len(heads) < HEADS:
            return
        after = heads[-1].accept_order


def _settle_user(head: Head | None, parts: Parts) -> None:
    """Settle one user's rows, together or else one by one up to the first that fails."""
    limit = BATCH_ROWS
    while head:
        try:
            batch = settle_batch([parts.lane], head.user_id, 1 if head.attempts else limit)
        except Exception as error:
            if is_machinery(error):
                if not may_be_one_users(error):
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
        parts.settled += len(batch.outcomes)
        parts.rejected += batch.rejected
        parts.parked += batch.parked
        with transaction() as connection:
            head = lane_queries.find_head(connection, parts.lane, head.user_id)


def _park_failing(parts: Parts) -> None:
    """Park what fails as soon as something else commits. What was parked before is told apart already."""
    guilty = [(head, error) for head, error in parts.failing if parts.settled or head.attempts]
    parts.failing = [pair for pair in parts.failing if pair not in guilty]
    for head, error in guilty:
        with transaction() as connection:
            count = parked.park(connection, [head.uid], error, failed=True)
        metrics.PARKED.inc(count)
        parts.parked += count
        log.error("parked", uid=str(head.uid), user_id=head.user_id, lane=parts.lane, error=error)


def retry_due() -> int:
    """Release what has been parked long enough: a failed row alone, its followers once it is settled."""
    with transaction() as connection:
        heads = parked.find_due_heads(connection, limit=100)
    return sum(_retry(head) for head in heads)


def _retry(head: ParkedRow) -> int:
    """One user's trouble keeps no other's rows parked."""
    try:
        with transaction() as connection:
            # Under the lane's lock, so that no batch is deciding who waits behind whom. Busy: the sweep returns.
            if not lane_queries.try_lock_lanes(connection, [head.lane]):
                return 0
            lane_queries.hurry(connection)
            through = head.accept_order if head.attempts else EVERYTHING
            released = parked.release(connection, head.user_id, through, RELEASE_ROWS)
    except Exception as error:
        if not may_be_one_users(error):
            raise
        log.warning("a parked row was not released; it is tried again", uid=str(head.uid), error=repr(error))
        return 0
    _tell_released(head, released)
    return released


def release(uid: UUID, actor: str = actions.SERVICE) -> int:
    """Release a parked transaction and all of its user's that are parked with it; the number of rows.

    Raises NotFound where no parked transaction has this uid. Waits for a busy lane, up to the lock's time-out:
    nobody would come back to it.
    """
    with transaction() as connection:
        row = parked.find_parked(connection, uid)
        before = read_clock(connection)
    if row is None:
        raise NotFound("not_parked", f"There is no parked transaction {uid}.")
    released = sum(_release_users(row.lane, [row.user_id], before, Asked(actor, str(uid))))
    _tell_released(row, released)
    return released


class Asked(NamedTuple):
    """Who asked for a release, and of what: a uid, `all`, or an error's text."""

    actor: str
    target: str


class Released(NamedTuple):
    """How a release of many goes: rows released so far, and users left because their lane was busy."""

    rows: int = 0
    busy_users: int = 0


def release_matching(error: str, actor: str = actions.SERVICE) -> Iterator[Released]:
    """Release the users whose first parked row has this text in its error ("" for all); yields the counts so far.

    A commit covers one lane and a bounded number of rows. A user's rows are released in their order. A lane that stays
    busy is left, and its users are counted.
    """
    asked = Asked(actor, f"error: {error}" if error else "all")
    with transaction() as connection:
        before = read_clock(connection)
    done = Released()
    for lane in range(LANES):
        for users in _find_users(ParkedUsers(lane, error, before)):
            try:
                for rows in _release_users(lane, users, before, asked):
                    done = done._replace(rows=done.rows + rows)
                    yield done
            except DBAPIError as failure:
                if not is_lock_timeout(failure):
                    raise
                done = done._replace(busy_users=done.busy_users + len(users))
    log.warning("released parked transactions", target=asked.target, **done._asdict())
    yield done


def _find_users(wanted: ParkedUsers) -> Iterator[list[int]]:
    after = 0
    while True:
        with transaction() as connection:
            allow(connection, FIND_SECONDS)
            users = parked.find_users(connection, wanted, after, RELEASE_USERS)
        if not users:
            return
        yield users
        after = users[-1]


def _release_users(lane: int, users: Sequence[int], before: datetime, asked: Asked) -> Iterator[int]:
    """The number of rows of each commit."""
    while True:
        with transaction() as connection:
            lane_queries.lock_lane(connection, lane)
            count = parked.release_users(connection, users, before, RELEASE_ROWS)
            if count:
                details = {"lane": lane, "rows": count}
                actions.record(connection, asked.actor, "parked.release", asked.target, **details)
        yield count
        if count < RELEASE_ROWS:
            return


def _tell_released(row: ParkedRow, released: int) -> None:
    log.warning("released", uid=str(row.uid), user_id=row.user_id, lane=row.lane, rows=released)
