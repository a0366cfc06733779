"""What our own code cannot settle: found by settling a failed lane user by user, parked, tried again.

A row is parked only once others commit: when all fail alike, the release is bad, not the row. A parked row's user
waits behind it, everybody else goes on, and it is tried again after a minute, then ever more rarely, up to an hour.
A user for whom only the machinery fails (a lock held elsewhere, a damaged page) is passed over, and never parked.

Where rows of lists pile up, a worker drains: for a slice of time it settles what waits in any lane, single requests first,
and invites others to help. No one lane is held for long, so single requests wait for one or two batches, not for the list.
"""

import random
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy.exc import DBAPIError

from shared import doorbell, metrics
from shared.database import allow, is_lock_timeout, is_machinery, may_be_one_users, transaction
from shared.errors import NotFound
from shared.logs import get_logger
from shared.queries import actions, parked
from shared.queries import lanes as lane_queries
from shared.queries.lanes import PendingRow
from shared.queries.parked import ParkedRow, ParkedUsers
from shared.queries.server import read_clock
from shared.settling import BATCH_ROWS, SLICE_SECONDS, Slice, settle_batch, settle_lanes
from shared.status import LANES

PARTS_SECONDS: Final = 15.0  # for settling a lane in parts; what is left over is the next worker's
HEADS: Final = 200  # users looked up at once
RETRIED_USERS: Final = 100  # looked at by one statement
RETRY_SECONDS: Final = 1.0
DRAINED_LANES: Final = 4  # by one commit, so that others find lanes that are free
HOLD_EVERY_SECONDS: Final = 1.0
BUSY_SECONDS: Final = 0.01  # others have the lanes: a batch takes several times as long
RELEASE_ROWS: Final = 5000  # in one commit
RELEASE_USERS: Final = 5000  # looked up at once
FIND_SECONDS: Final = 60
EVERYTHING: Final = 2**63 - 1  # beyond every acceptance number and user id

log = get_logger("parking")
_drains = threading.Lock()  # held by the thread of this process that drains
_resume_after: dict[int, int] = {}  # of this process: the user at whom settling a lane in parts ended early


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
    failing: list[tuple[PendingRow, str]] = field(default_factory=list)
    passed_over: list[Exception] = field(default_factory=list)


def work_lanes(lanes: Sequence[int]) -> Slice:
    """Settle lanes; where a batch fails by a row's own fault, ours, or for one user alone: each lane in parts.

    Raises LaneFails, or what the machinery raised: either way everything unsettled is still PENDING, and the
    sweep comes back to it.
    """
    failures: dict[int, Exception] = {}
    done = _settle(lanes, settle_lanes, failures)
    # One drain is enough for a process: two threads would only take the interpreter from each other.
    if done.lists_wait and _drains.acquire(blocking=False):
        try:
            _drain(done, failures)
        finally:
            _drains.release()
    if failures:
        raise next(iter(failures.values()))
    return done


def is_draining() -> bool:
    """Returns whether a thread of this process looks at all lanes just now."""
    return _drains.locked()


def _settle(lanes: Sequence[int], settle: Callable[[Sequence[int]], Slice], failures: dict[int, Exception]) -> Slice:
    """Settle lanes, in parts where that fails. What one lane raises is put into `failures`, and keeps no other waiting."""
    try:
        return settle(lanes)
    except Exception as error:
        machinery = is_machinery(error)
        metrics.BATCH_FAILURES.labels("machinery" if machinery else "own").inc()
        if machinery and not may_be_one_users(error):
            raise
        log.exception("a batch failed, maybe by one user's rows: settling in parts", lanes=list(lanes))
    done = Slice(list(lanes))
    for lane in lanes:
        try:
            part = _settle([lane], settle_lanes, failures) if len(lanes) > 1 else _settle_in_parts(lane)
        except Exception as error:
            failures[lane] = error
        else:
            done.add(part)
            done.busy |= part.busy
            done.lists_wait |= part.lists_wait
    return done


def _drain(done: Slice, failures: dict[int, Exception]) -> None:
    """Settle what waits in any lane until nothing does, or a slice of time is over; counts it in `done`.

    Nobody needs to ring meanwhile. A lane that fails is put into `failures` and left alone.
    """
    ends, holds_at = time.monotonic() + SLICE_SECONDS, 0.0
    doorbell.invite()
    while (now := time.monotonic()) < ends:
        if now >= holds_at:
            holds_at = now + HOLD_EVERY_SECONDS
            doorbell.hold(range(LANES))
        lanes = _choose_lanes(failures)
        if not lanes:
            doorbell.hush(range(LANES))  # and look again: who commits after this rings
            holds_at = 0.0
            if not (lanes := _choose_lanes(failures)):
                return
        part = _settle(lanes, _settle_once, failures)
        done.add(part)
        done.lanes = sorted({*done.lanes, *part.lanes})
        if part.busy:
            time.sleep(BUSY_SECONDS)
    doorbell.invite()


def _choose_lanes(failing: Collection[int]) -> list[int]:
    """Returns some lanes with rows to settle, in any order: those with single requests, but for one that has lists."""
    with transaction() as connection:
        work = lane_queries.find_work(connection)
    single = _shuffled({*work.single}.difference(failing))
    first, rest = single[: DRAINED_LANES - 1], single[DRAINED_LANES - 1 :]
    bulk = _shuffled({*work.bulk}.difference(failing, first))
    return list(dict.fromkeys([*first, *bulk, *rest]))[:DRAINED_LANES]


def _shuffled(lanes: set[int]) -> list[int]:
    """So that several processes spread over the lanes."""
    return random.sample(sorted(lanes), len(lanes))


def _settle_once(lanes: Sequence[int]) -> Slice:
    done = Slice(list(lanes))
    if batch := settle_batch(lanes, draining=True):
        done.add(batch)
    done.busy = batch is None
    return done


def _settle_in_parts(lane: int) -> Slice:
    parts = Parts(lane)
    ends = time.monotonic() + PARTS_SECONDS
    for user_id in _users(lane):
        _settle_user(user_id, parts)
        _park_failing(parts)
        if parts.busy or time.monotonic() > ends:
            _resume_after[lane] = user_id
            break
    if parts.failing:
        raise LaneFails(f"{len(parts.failing)} rows of lane {lane} fail and nothing commits: {parts.failing[0][1]}")
    if parts.passed_over:
        raise parts.passed_over[0]
    return Slice([lane], parts.settled, parts.parked, parts.busy, parts.rejected)


def _users(lane: int) -> Iterator[int]:
    """The lane's users with rows to settle, once around, from where time ran out before: none is always the last.

    Users, not rows: one user may fill any number of batches.
    """
    start = _resume_after.pop(lane, 0)
    yield from _users_between(lane, start, EVERYTHING)
    yield from _users_between(lane, 0, start)


def _users_between(lane: int, after: int, through: int) -> Iterator[int]:
    while after < through:
        with transaction() as connection:
            users = lane_queries.read_users(connection, lane, after, HEADS)
        yield from (user_id for user_id in users if user_id <= through)
        after = users[-1] if len(users) == HEADS else through


def _settle_user(user_id: int, parts: Parts) -> None:
    """Settle one user's rows, together or else one by one up to the first that fails."""
    limit = BATCH_ROWS
    while head := _first_row(user_id):
        try:
            batch = settle_batch([parts.lane], user_id, 1 if head.attempts else limit)
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


def _first_row(user_id: int) -> PendingRow | None:
    with transaction() as connection:
        return next(iter(lane_queries.read_pending_of_user(connection, user_id, 1)), None)


def _park_failing(parts: Parts) -> None:
    """Park what fails as soon as something else commits. What was parked before is told apart already."""
    guilty = [(head, error) for head, error in parts.failing if parts.settled or head.attempts]
    parts.failing = [pair for pair in parts.failing if pair not in guilty]
    for head, error in guilty:
        with transaction() as connection:
            count = parked.park(connection, [head.pending.uid], error, failed=True)
        metrics.PARKED.inc(count)
        parts.parked += count
        log.error("parked", uid=str(head.pending.uid), user_id=head.pending.user_id, lane=parts.lane, error=error)


@dataclass
class Place:
    """How far a process has looked through the users with parked rows: the last user's id, 0 at the beginning."""

    after: int = 0


def retry_due(place: Place | None = None) -> int:
    """Release what has been parked long enough: a failed row alone, its followers once it is settled.

    Begins after the place, and moves it: a round through very many users takes several calls.
    """
    place = place or Place()
    ends = time.monotonic() + RETRY_SECONDS
    released = 0
    while True:
        with transaction() as connection:
            heads, place.after = parked.find_due_heads(connection, place.after, RETRIED_USERS)
        released += sum(_retry(head) for head in heads)
        if not place.after or time.monotonic() > ends:
            return released


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
