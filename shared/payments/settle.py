"""Settles lanes, one batch after another, each in one commit (shared/payments/batch).

Called by the task and by the sweep.

Only a failed batch leaves this path. If a row or a user may be the reason, each lane is settled by itself, and a lane
that fails again is settled user by user (shared/payments/isolate).

If rows of lists pile up, a worker drains: for a slice of time it settles all lanes, single requests first, and invites
other workers. It holds no lane for long, so a single request waits for one or two batches instead of the whole list.

    work_lanes -> settle_lanes -> settle_batch          the usual path
        if a batch fails: each lane alone, then isolate.settle_in_parts
        if lists wait: _drain -> _settle_once -> settle_batch
"""

import random
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from shared import metrics
from shared.database import is_infrastructure_error, may_be_single_user, transaction
from shared.logs import get_logger
from shared.payments import doorbell
from shared.payments.batch import Batch, Counts, settle_batch
from shared.payments.isolate import settle_in_parts
from shared.payments.model import LANES
from shared.payments.queries import lanes as lane_queries

SETTLE_SLICE_SECONDS: Final = 2.0
DRAIN_BATCH_LANES: Final = 4  # of one commit, so that other workers find free lanes
HOLD_INTERVAL_SECONDS: Final = 1.0
# While other workers hold the lanes: a batch takes several times as long as this pause.
BUSY_PAUSE_SECONDS: Final = 0.01

log = get_logger("settle")
_drains = threading.Lock()  # held by the thread of this process that drains


@dataclass
class SliceResult:
    """The result of a slice of work on lanes. Flower shows its text.

    `busy`: other processes held all the lanes. `lists_wait`: rows of lists are left, and no ring announces them to other workers: the
    caller drains.
    """

    lanes: list[int]
    counts: Counts = field(default_factory=Counts)
    busy: bool = False
    lists_wait: bool = False

    def __str__(self) -> str:
        counts = self.counts
        parts = {"completed": counts.completed, "rejected": counts.rejected, "parked": counts.parked}
        result = ", ".join(f"{count} {name}" for name, count in parts.items() if count)
        lanes = f"lane{'s' * (len(self.lanes) > 1)} {', '.join(map(str, sorted(self.lanes)))}"
        return f"{result or ('busy elsewhere' if self.busy else 'nothing to do')}; {lanes}"


def work_lanes(lanes: Sequence[int]) -> SliceResult:
    """Settles lanes. Returns the result. If a batch fails because of a row or a user, isolates it.

    Raises LaneFailed, or the infrastructure error. Then all unsettled rows are still PENDING, and the sweep retries
    them.
    """
    failures: dict[int, Exception] = {}
    result = _settle_or_split(lanes, settle_lanes, failures)
    # One drain for each process is enough: two threads would only compete for the interpreter.
    if result.lists_wait and _drains.acquire(blocking=False):
        try:
            _drain(result, failures)
        finally:
            _drains.release()
    if failures:
        raise next(iter(failures.values()))
    return result


def is_draining() -> bool:
    """Returns whether a thread of this process drains now."""
    return _drains.locked()


def find_overdue(seconds: float) -> list[int]:
    """Returns the lanes whose oldest unparked PENDING row was accepted more than `seconds` ago, or in the future.

    A time in the future means that the clock has stepped back.
    """
    with transaction() as connection:
        return lane_queries.find_overdue_lanes(connection, LANES, seconds)


def settle_lanes(lanes: Sequence[int]) -> SliceResult:
    """Settles lanes until they are empty or the slice of time is over. Returns the result; rings for the lanes left.

    Returns early if rows of lists pile up, because `_drain` settles those in all lanes.
    Raises the first error of a batch. Earlier batches stay committed; the other rows stay PENDING.
    """
    result = SliceResult(list(lanes))
    deadline = time.monotonic() + SETTLE_SLICE_SECONDS
    while True:
        batch = settle_batch(lanes)
        if batch is None:
            result.busy = True
            return result
        result.counts += batch.counts
        if batch.lists_wait:
            result.lists_wait = True
            return result
        unsettled = sorted(batch.unfinished_lanes | batch.flagged_lanes)
        if not unsettled:
            return result
        if time.monotonic() > deadline:
            _hand_back(unsettled, batch)
            return result
        if batch.unfinished_lanes:  # rows pile up: keep one lane, and leave the others to other workers
            _hand_back(unsettled[1:], batch)
            unsettled = unsettled[:1]
        lanes = unsettled


def _hand_back(lanes: Sequence[int], batch: Batch) -> None:
    """Rings for each lane by itself, so that one process takes each lane.

    Clears the flag first: a set flag would suppress the ring, although its message has been taken.
    """
    uid = str(batch.outcomes[-1].pending.uid) if batch.outcomes else "nothing"
    for lane in lanes:
        doorbell.clear_flags([lane])
        doorbell.ring({lane: doorbell.RingSource(f"{uid}-{lane}")}, own_message=True)


def _settle_or_split(
    lanes: Sequence[int], settle: Callable[[Sequence[int]], SliceResult], failures: dict[int, Exception]
) -> SliceResult:
    """Settles lanes together; if that fails, one by one. Puts the error of a lane into `failures`, and continues."""
    try:
        return settle(lanes)
    except Exception as error:
        is_infrastructure = is_infrastructure_error(error)
        metrics.BATCH_FAILURES.labels("machinery" if is_infrastructure else "own").inc()
        if is_infrastructure and not may_be_single_user(error):
            raise
        log.exception("batch failed, settling in parts", lanes=list(lanes))
    return _settle_separately(lanes, failures)


def _settle_separately(lanes: Sequence[int], failures: dict[int, Exception]) -> SliceResult:
    """Settles each of several lanes by itself, and a single lane user by user."""
    result = SliceResult(list(lanes))
    for lane in lanes:
        try:
            part = _settle_or_split([lane], settle_lanes, failures) if len(lanes) > 1 else _settle_in_parts(lane)
        except Exception as error:
            failures[lane] = error
        else:
            result.counts += part.counts
            result.busy |= part.busy
            result.lists_wait |= part.lists_wait
    return result


def _settle_in_parts(lane: int) -> SliceResult:
    parts = settle_in_parts(lane)
    return SliceResult([lane], parts.counts, parts.busy)


def _drain(result: SliceResult, failures: dict[int, Exception]) -> None:
    """Settles all lanes until they are empty or a slice of time is over. Adds the counts to `result`.

    Other processes do not ring during a drain. The error of a lane goes into `failures`, and the lane is not tried
    again.
    """
    deadline, next_hold_at = time.monotonic() + SETTLE_SLICE_SECONDS, 0.0
    doorbell.invite()
    while (now := time.monotonic()) < deadline:
        if now >= next_hold_at:
            next_hold_at = now + HOLD_INTERVAL_SECONDS
            doorbell.set_flags(range(LANES))
        lanes = _choose_lanes(failures)
        if not lanes:
            doorbell.clear_flags(range(LANES))  # then read again: a commit after this rings
            next_hold_at = 0.0
            if not (lanes := _choose_lanes(failures)):
                return
        part = _settle_or_split(lanes, _settle_once, failures)
        result.counts += part.counts
        result.lanes = sorted({*result.lanes, *part.lanes})
        if part.busy:
            time.sleep(BUSY_PAUSE_SECONDS)
    doorbell.invite()


def _choose_lanes(failing: Collection[int]) -> list[int]:
    """Returns a few random lanes with rows to settle: lanes with single requests first, but at least one with lists."""
    with transaction() as connection:
        work = lane_queries.find_work(connection)
    single = _shuffled({*work.single}.difference(failing))
    first, rest = single[: DRAIN_BATCH_LANES - 1], single[DRAIN_BATCH_LANES - 1 :]
    bulk = _shuffled({*work.bulk}.difference(failing, first))
    return list(dict.fromkeys([*first, *bulk, *rest]))[:DRAIN_BATCH_LANES]


def _shuffled(lanes: set[int]) -> list[int]:
    """Returns the lanes in random order, so that several processes spread over them."""
    return random.sample(sorted(lanes), len(lanes))


def _settle_once(lanes: Sequence[int]) -> SliceResult:
    batch = settle_batch(lanes, draining=True)
    return SliceResult(list(lanes), batch.counts) if batch else SliceResult(list(lanes), busy=True)
