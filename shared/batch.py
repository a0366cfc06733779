"""Settle a batch: the next PENDING rows of some lanes in acceptance order, one commit, each lane by one worker at a time.

A lane's lock is tried, never waited for: with waiting, every process ends up asleep on one busy lane. Lock,
read and clock are statements of their own, since what a statement sees is fixed when it begins. What a batch costs is
mostly the same for one row and for thirty, so one commit settles all the lanes that were rung for together; where
rows pile up, each lane goes its own way, so that many processes share the work.

Rows of lists yield to single requests, without starving: of each lane a batch takes single requests first, and lists fill
it, to a quarter at least. No row overtakes an earlier one of its user: one that follows a list of its user is accepted
as one of the list (queries/transactions), and `pick_rows` holds back what follows single requests that were not read.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from shared import doorbell, metrics
from shared.database import is_resource_limit, transaction
from shared.ledger import Account, Outcome, Pending, PendingRow, fold, instants_to_scan
from shared.logs import get_logger
from shared.model import Reason, Status, lane_of
from shared.queries import lanes as lane_queries
from shared.queries import ledger, parked, users

SETTLE_BATCH_ROWS: Final = 500
BULK_SHARE: Final = 4  # a fourth of a batch's rows may be of lists, however many single requests wait
MAX_SCANNED_ENTRIES: Final = 20_000  # of all pasts that one commit scans, unless a single one is longer

log = get_logger("settling")


class BooksDisagree(Exception):
    """Fewer rows were written than were read under the lock: roll back and alarm, never go on."""


class HistoryTooLong(Exception):
    """A late withdrawal's past could not be read in time. That is the row's own: waiting would not mend it."""


@dataclass(frozen=True)
class Counts:
    """Numbers of rows; `rejected` are among the settled. Those of several pieces of work are added with +."""

    settled: int = 0
    rejected: int = 0
    parked: int = 0

    @property
    def completed(self) -> int:
        return self.settled - self.rejected

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.settled + other.settled, self.rejected + other.rejected, self.parked + other.parked)


@dataclass
class Batch:
    """What one commit did. `lanes` are those that were free; `unfinished_lanes` those that may hold rows it did not settle.

    `lists_wait`: some of those rows are of lists. `flagged_lanes`: the lanes that somebody rang for meanwhile.
    """

    lanes: list[int]
    outcomes: list[Outcome] = field(default_factory=list)
    moment: datetime | None = None
    parked: int = 0
    unfinished_lanes: set[int] = field(default_factory=set)
    lists_wait: bool = False
    flagged_lanes: set[int] = field(default_factory=set)

    @property
    def counts(self) -> Counts:
        """Returns the numbers of rows that it settled and parked."""
        rejected = sum(outcome.status == Status.REJECTED for outcome in self.outcomes)
        return Counts(len(self.outcomes), rejected, self.parked)

    @property
    def settled_lanes(self) -> set[int]:
        """Those in which rows became final."""
        return {lane_of(outcome.pending.user_id) for outcome in self.outcomes}


def settle_batch(
    lanes: Sequence[int], user_id: int | None = None, limit: int = SETTLE_BATCH_ROWS, *, draining: bool = False
) -> Batch | None:
    """Settle the next rows of lanes, or of one user in a lane, in one transaction. None: all are busy.

    A drain leaves the doorbell's keys as they are, because it looks at all lanes by itself.
    """
    with transaction() as connection:
        free = lane_queries.try_lock_lanes(connection, lanes)
        if not free:
            return None
        if user_id is not None:
            # Others wait behind this user: one who is locked elsewhere is passed over.
            lane_queries.set_lock_timeout(connection)
        if not draining:
            # The one network call inside a transaction. After the lock and before the read: whoever commits too
            # late for this read finds the key gone and rings.
            doorbell.clear_flags(free)
        batch = Batch(free)
        _settle_next(connection, batch, user_id, limit)
    # After the commit, which let go of the locks: a worker that came before that has left again. And first of all,
    # because somebody may wait for the outcome.
    if not draining:
        batch.flagged_lanes = doorbell.flagged_lanes(batch.lanes, batch.settled_lanes)
    elif batch.outcomes:
        doorbell.publish_settled(batch.settled_lanes)
    _report(batch)
    return batch


def _settle_next(connection: Connection, batch: Batch, user_id: int | None, limit: int) -> None:
    """Settle the batch's next rows, and park those that wait behind parked ones."""
    rows = _read_batch(connection, batch, limit) if user_id is None else _read_user(connection, batch, user_id, limit)
    behind = [row.pending.uid for row in rows if row.behind_parked]
    if behind:
        batch.parked = parked.park(connection, behind, "waits behind a parked one", failed=False)
    pending = [row.pending for row in rows if not row.behind_parked]
    if pending:
        _settle(connection, pending, batch)


def _read_batch(connection: Connection, batch: Batch, limit: int) -> list[PendingRow]:
    """Returns the next rows of the batch's lanes in acceptance order, and notes what they leave behind."""
    of_each = -(-limit // len(batch.lanes))
    rows_by_lane: dict[int, list[PendingRow]] = {lane: [] for lane in batch.lanes}
    for row in lane_queries.read_pending(connection, batch.lanes, of_each):
        rows_by_lane[lane_of(row.pending.user_id)].append(row)
    rows = []
    for lane, waiting in rows_by_lane.items():
        taken = pick_rows(waiting, of_each)
        rows += taken
        bulk = sum(row.bulk for row in waiting)
        lists_remain = bulk == of_each or len(taken) < len(waiting)
        batch.lists_wait |= lists_remain
        if lists_remain or len(waiting) - bulk == of_each:
            batch.unfinished_lanes.add(lane)
    return sorted(rows, key=lambda row: row.accept_order)


def pick_rows(waiting: Sequence[PendingRow], limit: int) -> list[PendingRow]:
    """Returns the rows of a lane that are settled now: all single requests that were read, and of the lists what has room.

    `waiting` are the lane's first `limit` single requests and its first `limit` rows of lists. Where there may be more
    single requests, a row of a list that was accepted after the last one read waits: its user may have sent one of those.
    """
    single = [row for row in waiting if not row.bulk]
    bulk = [row for row in waiting if row.bulk]
    if len(single) == limit:
        bulk = [row for row in bulk if row.accept_order < single[-1].accept_order]
    return single + bulk[: max(limit - len(single), limit // BULK_SHARE)]


def _read_user(connection: Connection, batch: Batch, user_id: int, limit: int) -> list[PendingRow]:
    rows = lane_queries.read_pending_of_user(connection, user_id, limit)
    if len(rows) == limit:
        batch.unfinished_lanes.update(batch.lanes)
    return rows


def _settle(connection: Connection, pending: Sequence[Pending], batch: Batch) -> None:
    """Lock, fold, write, and put into the batch what became of the rows."""
    accounts, moment = users.lock_accounts(connection, {row.user_id for row in pending})
    pending, scans, cut = _cut_to_scannable(pending, accounts, at_least_one=len(batch.lanes) == 1)
    batch.unfinished_lanes |= cut
    if not pending:
        return
    with _scan_timeout(connection, scans):
        lowest_balances = {
            user_id: ledger.scan_lowest_balances(connection, accounts[user_id], scans[user_id]) for user_id in scans
        }
        outcomes, after = fold(
            pending, {row.user_id: accounts[row.user_id] for row in pending}, lowest_balances, moment
        )
        # Its trigger reads the same past once more.
        written = ledger.write(connection, outcomes, after.values(), moment)
    if written != (len(pending), len(after)):
        raise BooksDisagree(f"of {len(pending)} rows and {len(after)} accounts were written: {written}")
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
        if entries > MAX_SCANNED_ENTRIES and (scans or not at_least_one):
            cuts[lane] = pending.index(rows[0])
        else:
            scans[user_id] = starts
    if cuts:
        pending = [row for place, row in enumerate(pending) if place < cuts.get(lane_of(row.user_id), len(pending))]
    return pending, scans, set(cuts)


def _by_user(pending: Sequence[Pending]) -> dict[int, list[Pending]]:
    """Each user's rows in their order; the users in the order of their first rows."""
    rows_by_user: dict[int, list[Pending]] = {}
    for row in pending:
        rows_by_user.setdefault(row.user_id, []).append(row)
    return rows_by_user


@contextmanager
def _scan_timeout(connection: Connection, user_ids: Collection[int]) -> Iterator[None]:
    """Allow what reading a long past takes. Raises HistoryTooLong where even that is not enough."""
    if not user_ids:
        yield
        return
    ledger.set_late_scan_timeout(connection)
    try:
        yield
    except DBAPIError as error:
        if is_resource_limit(error):
            raise HistoryTooLong(f"the past of user {next(iter(user_ids))} takes too long to read") from error
        raise


def _report(batch: Batch) -> None:
    if batch.parked:
        metrics.PARKED.inc(batch.parked)
        log.error("parked behind another", lanes=batch.lanes, parked=batch.parked)
    if batch.moment is None:
        return
    counts = batch.counts
    metrics.SETTLED.labels(Status.COMPLETED.value).inc(counts.completed)
    metrics.SETTLED.labels(Status.REJECTED.value).inc(counts.rejected)
    reasons = Counter(outcome.reason for outcome in batch.outcomes if outcome.reason)
    for reason in Reason:  # also those that are 0: a rate needs a beginning
        metrics.REJECTED.labels(reason.value).inc(reasons[reason])
    metrics.BATCH_SIZE.observe(counts.settled)
    for outcome in batch.outcomes:
        metrics.TIME_TO_FINAL.observe((batch.moment - outcome.pending.accepted_at).total_seconds())
    log.info(
        "settled",
        lanes=batch.lanes,
        completed=counts.completed,
        rejected=counts.rejected,
        transactions=[(str(o.pending.uid), o.reason or o.status, o.pending.request_id) for o in batch.outcomes],
    )
