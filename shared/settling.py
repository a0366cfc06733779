"""Settle lanes: their PENDING rows in acceptance order, one commit per batch, each lane by one worker at a time.

A lane's lock is tried, never waited for: with waiting, every process ends up asleep on one busy lane. Lock,
read and clock are statements of their own, since what a statement sees is fixed when it begins. What a batch costs is
mostly the same for one row and for thirty, so one commit settles all the lanes that were rung for together; where
rows pile up, each lane goes its own way, so that many processes share the work.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from shared import doorbell, metrics
from shared.database import is_too_much, transaction
from shared.ledger import Account, Outcome, Pending, fold, instants_to_scan
from shared.logs import get_logger
from shared.queries import lanes as lane_queries
from shared.queries import ledger, parked, server, transactions, users
from shared.status import Reason, Status, lane_of

BATCH_ROWS: Final = 500
SLICE_SECONDS: Final = 2.0
SCAN_ENTRIES: Final = 20_000  # of all pasts that one commit scans, unless a single one is longer

log = get_logger("settling")


class BooksDisagree(Exception):
    """Fewer rows were written than were read under the lock: roll back and alarm, never go on."""


class PastTooLong(Exception):
    """A late withdrawal's past could not be read in time. That is the row's own: waiting would not mend it."""


@dataclass
class Batch:
    """What one commit did. `lanes` are those that were free; `more` those that may hold rows it did not settle."""

    lanes: list[int]
    outcomes: list[Outcome] = field(default_factory=list)
    moment: datetime | None = None
    parked: int = 0
    more: set[int] = field(default_factory=set)


@dataclass
class Slice:
    """What a slice of work on lanes did. `busy`: other processes had them all. The counts are of rows."""

    lanes: list[int]
    settled: int = 0
    parked: int = 0
    busy: bool = False

    def __str__(self) -> str:
        named = f"lane{'s' * (len(self.lanes) > 1)} {', '.join(map(str, self.lanes))}"
        if self.busy and not self.settled:
            return f"{named}: busy elsewhere"
        return f"{named}: {self.settled} settled, {self.parked} parked"


def settle_lanes(lanes: Sequence[int]) -> Slice:
    """Settle lanes until they are empty or the slice's time is over; then hand them back by ringing.

    Raises the first error met. What was committed before it stays; the rest is PENDING as it was.
    """
    done = Slice(list(lanes))
    ends = time.monotonic() + SLICE_SECONDS
    while True:
        batch = settle_batch(lanes)
        if batch is None:
            done.busy = True
            return done
        done.settled += len(batch.outcomes)
        done.parked += batch.parked
        # Looked at after the commit, which let go of the locks: a worker that came before that has left again.
        left = sorted(batch.more | doorbell.rung(batch.lanes))
        if not left:
            return done
        if time.monotonic() > ends:
            _hand_back(left, batch)
            return done
        if batch.more:  # they pile up: one is ours, the others are for whoever comes
            _hand_back(left[1:], batch)
            left = left[:1]
        lanes = left


def _hand_back(lanes: Sequence[int], batch: Batch) -> None:
    """Ring for each lane by itself: one process a lane. Hushed first, or the ring would ride on a spent message."""
    uid = str(batch.outcomes[-1].pending.uid) if batch.outcomes else "nothing"
    for lane in lanes:
        doorbell.hush([lane])
        doorbell.ring({lane: doorbell.Bell(f"{uid}-{lane}")})


def settle_batch(lanes: Sequence[int], user_id: int | None = None, limit: int = BATCH_ROWS) -> Batch | None:
    """Settle the next rows of lanes, or of one user in a lane, in one transaction. None: all are busy."""
    with transaction() as connection:
        free = lane_queries.try_lock_lanes(connection, lanes)
        if not free:
            return None
        if user_id is not None:
            lane_queries.hurry(connection)  # others wait behind this user: one who is locked elsewhere is passed over
        # The one network call inside a transaction. After the lock and before the read: whoever commits too
        # late for this read finds the key gone and rings.
        doorbell.hush(free)
        of_each = -(-limit // len(free))
        rows = lane_queries.read_pending(connection, free, of_each, user_id)
        read = Counter(lane_of(row.pending.user_id) for row in rows)
        batch = Batch(free, more={lane for lane, count in read.items() if count == of_each})
        if not rows:
            return batch
        behind = [row.pending.uid for row in rows if row.behind_parked]
        if behind:
            batch.parked = parked.park(connection, behind, "waits behind a parked one", failed=False)
        pending = [row.pending for row in rows if not row.behind_parked]
        if pending:
            _settle(connection, pending, batch)
    _report(batch)
    return batch


def _settle(connection: Connection, pending: Sequence[Pending], batch: Batch) -> None:
    """Lock, fold, write, and put into the batch what became of the rows."""
    accounts = users.lock_accounts(connection, {row.user_id for row in pending})
    pending, scans, cut = _cut_to_scannable(pending, accounts, at_least_one=len(batch.lanes) == 1)
    batch.more |= cut
    if not pending:
        return
    with _time_to_scan(connection, scans):
        pasts = {user_id: ledger.scan_past(connection, accounts[user_id], scans[user_id]) for user_id in scans}
        moment = server.read_clock(connection)
        outcomes, after = fold(pending, {row.user_id: accounts[row.user_id] for row in pending}, pasts, moment)
        ledger.insert_entries(connection, outcomes, moment)  # the trigger reads the same past once more
    written = users.write_accounts(connection, after.values())
    final = transactions.make_final(connection, outcomes, moment)
    ledger.insert_events(connection, outcomes, moment)
    if (written, final) != (len(after), len(pending)):
        raise BooksDisagree(f"{final} of {len(pending)} rows, {written} of {len(after)} accounts were written")
    batch.outcomes, batch.moment = outcomes, moment


def _cut_to_scannable(
    pending: Sequence[Pending], accounts: Mapping[int, Account], *, at_least_one: bool
) -> tuple[Sequence[Pending], dict[int, list[datetime]], set[int]]:
    """The rows to settle, from which instants on which users' pasts must be scanned for them, and the lanes cut.

    A lane is cut at the first row of a user whose past is too much for this commit: its rest waits for its turn. With
    `at_least_one` the first past is scanned however long it is.
    """
    scans: dict[int, list[datetime]] = {}
    cuts: dict[int, int] = {}
    entries = 0
    for user_id, rows in _by_user(pending).items():
        lane = lane_of(user_id)
        starts = [] if lane in cuts else instants_to_scan(accounts[user_id], rows)
        if not starts:
            continue
        entries += accounts[user_id].last_seq
        if entries > SCAN_ENTRIES and (scans or not at_least_one):
            cuts[lane] = pending.index(rows[0])
        else:
            scans[user_id] = starts
    if cuts:
        pending = [row for place, row in enumerate(pending) if place < cuts.get(lane_of(row.user_id), len(pending))]
    return pending, scans, set(cuts)


def _by_user(pending: Sequence[Pending]) -> dict[int, list[Pending]]:
    """Each user's rows in their order; the users in the order of their first rows."""
    found: dict[int, list[Pending]] = {}
    for row in pending:
        found.setdefault(row.user_id, []).append(row)
    return found


@contextmanager
def _time_to_scan(connection: Connection, user_ids: Collection[int]) -> Iterator[None]:
    """Allow what reading a long past takes. Raises PastTooLong where even that is not enough."""
    if not user_ids:
        yield
        return
    ledger.allow_late_scan(connection)
    try:
        yield
    except DBAPIError as error:
        if is_too_much(error):
            raise PastTooLong(f"the past of user {next(iter(user_ids))} takes too long to read") from error
        raise


def _report(batch: Batch) -> None:
    if batch.parked:
        metrics.PARKED.inc(batch.parked)
        log.error("parked behind a parked one", lanes=batch.lanes, parked=batch.parked)
    if batch.moment is None:
        return
    rejected = Counter(outcome.reason for outcome in batch.outcomes if outcome.reason)
    completed = len(batch.outcomes) - rejected.total()
    metrics.SETTLED.labels(Status.COMPLETED.value).inc(completed)
    metrics.SETTLED.labels(Status.REJECTED.value).inc(rejected.total())
    for reason in Reason:  # also those that are 0: a rate needs a beginning
        metrics.REJECTED.labels(reason.value).inc(rejected[reason])
    metrics.BATCH_SIZE.observe(len(batch.outcomes))
    for outcome in batch.outcomes:
        metrics.TIME_TO_FINAL.observe((batch.moment - outcome.pending.accepted_at).total_seconds())
    log.info(
        "settled",
        lanes=batch.lanes,
        completed=completed,
        rejected=rejected.total(),
        transactions=[(str(o.pending.uid), o.reason or o.status, o.pending.request_id) for o in batch.outcomes],
    )
