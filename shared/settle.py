"""Settle lanes: the worker's entry. A slice of work settles batch after batch, each one commit (shared/batch).

A batch that fails is the only way off this path: where a row or a user may be the reason, each lane is settled by itself,
and a lane that fails by itself is settled user by user (shared/isolate).

Where rows of lists pile up, a worker drains: for a slice of time it settles what waits in any lane, single requests first,
and invites others to help. No one lane is held for long, so single requests wait for one or two batches, not for the list.
"""

import random
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from shared import doorbell, metrics
from shared.batch import Batch, Counts, settle_batch
from shared.database import is_infrastructure_error, may_be_single_user, transaction
from shared.isolate import settle_in_parts
from shared.logs import get_logger
from shared.model import LANES
from shared.queries import lanes as lane_queries

SETTLE_SLICE_SECONDS: Final = 2.0
DRAIN_BATCH_LANES: Final = 4  # by one commit, so that others find lanes that are free
HOLD_INTERVAL_SECONDS: Final = 1.0
BUSY_PAUSE_SECONDS: Final = 0.01  # others have the lanes: a batch takes several times as long

log = get_logger("settling")
_drains = threading.Lock()  # held by the thread of this process that drains


@dataclass
class Slice:
    """What a slice of work on lanes did. `busy`: other processes had them all. `lists_wait`: rows of lists pile up, and
    nobody was rung for them. Its text is what Flower shows.
    """

    lanes: list[int]
    counts: Counts = field(default_factory=Counts)
    busy: bool = False
    lists_wait: bool = False

    def __str__(self) -> str:
        counts = self.counts
        parts = {"completed": counts.completed, "rejected": counts.rejected, "parked": counts.parked}
        did = ", ".join(f"{count} {name}" for name, count in parts.items() if count)
        lanes = f"lane{'s' * (len(self.lanes) > 1)} {', '.join(map(str, sorted(self.lanes)))}"
        return f"{did or ('busy elsewhere' if self.busy else 'nothing to do')}; {lanes}"


def work_lanes(lanes: Sequence[int]) -> Slice:
    """Settles lanes; where a batch fails by a row's own fault, ours, or for one user alone: each lane in parts.

    Raises LaneFailed, or what the machinery raised: either way everything unsettled is still PENDING, and the
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


def find_overdue(seconds: float) -> list[int]:
    """Returns the lanes in which a row has waited to be settled for longer than that."""
    with transaction() as connection:
        return lane_queries.find_overdue_lanes(connection, LANES, seconds)


def settle_lanes(lanes: Sequence[int]) -> Slice:
    """Settles lanes until they are empty or the slice's time is over; then hands them back by ringing.

    Returns early where rows of lists pile up: they are for `_drain`, which looks at all lanes.
    Raises the first error met. What was committed before it stays; the rest is PENDING as it was.
    """
    done = Slice(list(lanes))
    deadline = time.monotonic() + SETTLE_SLICE_SECONDS
    while True:
        batch = settle_batch(lanes)
        if batch is None:
            done.busy = True
            return done
        done.counts += batch.counts
        if batch.lists_wait:
            done.lists_wait = True
            return done
        unsettled = sorted(batch.unfinished_lanes | batch.flagged_lanes)
        if not unsettled:
            return done
        if time.monotonic() > deadline:
            _hand_back(unsettled, batch)
            return done
        if batch.unfinished_lanes:  # they pile up: one is ours, the others are for whoever comes
            _hand_back(unsettled[1:], batch)
            unsettled = unsettled[:1]
        lanes = unsettled


def _hand_back(lanes: Sequence[int], batch: Batch) -> None:
    """Rings for each lane by itself: one process a lane. Hushed first, or the ring would ride on a spent message."""
    uid = str(batch.outcomes[-1].pending.uid) if batch.outcomes else "nothing"
    for lane in lanes:
        doorbell.clear_flags([lane])
        doorbell.ring({lane: doorbell.Bell(f"{uid}-{lane}")}, apart=True)


def _settle(lanes: Sequence[int], settle: Callable[[Sequence[int]], Slice], failures: dict[int, Exception]) -> Slice:
    """Settles lanes, apart where that fails. What one lane raises is put into `failures`, and keeps no other waiting."""
    try:
        return settle(lanes)
    except Exception as error:
        is_infrastructure = is_infrastructure_error(error)
        metrics.BATCH_FAILURES.labels("machinery" if is_infrastructure else "own").inc()
        if is_infrastructure and not may_be_single_user(error):
            raise
        log.exception("batch failed, settling in parts", lanes=list(lanes))
    return _settle_apart(lanes, failures)


def _settle_apart(lanes: Sequence[int], failures: dict[int, Exception]) -> Slice:
    """Settles each of several lanes by itself, and a single one user by user."""
    done = Slice(list(lanes))
    for lane in lanes:
        try:
            part = _settle([lane], settle_lanes, failures) if len(lanes) > 1 else _settle_in_parts(lane)
        except Exception as error:
            failures[lane] = error
        else:
            done.counts += part.counts
            done.busy |= part.busy
            done.lists_wait |= part.lists_wait
    return done


def _settle_in_parts(lane: int) -> Slice:
    parts = settle_in_parts(lane)
    return Slice([lane], parts.counts, parts.busy)


def _drain(done: Slice, failures: dict[int, Exception]) -> None:
    """Settles what waits in any lane until nothing does, or a slice of time is over; counts it in `done`.

    Nobody needs to ring meanwhile. A lane that fails is put into `failures` and left alone.
    """
    deadline, next_hold_at = time.monotonic() + SETTLE_SLICE_SECONDS, 0.0
    doorbell.invite()
    while (now := time.monotonic()) < deadline:
        if now >= next_hold_at:
            next_hold_at = now + HOLD_INTERVAL_SECONDS
            doorbell.set_flags(range(LANES))
        lanes = _choose_lanes(failures)
        if not lanes:
            doorbell.clear_flags(range(LANES))  # and look again: who commits after this rings
            next_hold_at = 0.0
            if not (lanes := _choose_lanes(failures)):
                return
        part = _settle(lanes, _settle_once, failures)
        done.counts += part.counts
        done.lanes = sorted({*done.lanes, *part.lanes})
        if part.busy:
            time.sleep(BUSY_PAUSE_SECONDS)
    doorbell.invite()


def _choose_lanes(failing: Collection[int]) -> list[int]:
    """Returns some lanes with rows to settle, in any order: those with single requests, but for one that has lists."""
    with transaction() as connection:
        work = lane_queries.find_work(connection)
    single = _shuffled({*work.single}.difference(failing))
    first, rest = single[: DRAIN_BATCH_LANES - 1], single[DRAIN_BATCH_LANES - 1 :]
    bulk = _shuffled({*work.bulk}.difference(failing, first))
    return list(dict.fromkeys([*first, *bulk, *rest]))[:DRAIN_BATCH_LANES]


def _shuffled(lanes: set[int]) -> list[int]:
    """Returns them in any order, so that several processes spread over the lanes."""
    return random.sample(sorted(lanes), len(lanes))


def _settle_once(lanes: Sequence[int]) -> Slice:
    batch = settle_batch(lanes, draining=True)
    return Slice(list(lanes), batch.counts) if batch else Slice(list(lanes), busy=True)
