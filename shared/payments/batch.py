"""Settles a batch: the next PENDING rows of some lanes in acceptance order, in one commit, with the lanes locked.

A lane lock is tried, never waited for: otherwise all processes end up waiting for one busy lane. Lock, read and clock
are separate statements, because a statement's snapshot (MVCC) is fixed when it begins. A batch costs nearly the same
for one row and for thirty, so one commit settles all flagged lanes together. If rows pile up, the worker keeps one lane
and hands the others back (`settle`), so that many processes share the work.

Rows of lists yield to single requests without starving. A batch takes the single requests of each lane first; lists get
the rest, and at least a quarter. No row overtakes an earlier row of its user: a row that follows its user's list is
accepted as part of the list (queries/transactions), and `pick_rows` leaves rows that may follow unread single requests.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from shared import metrics
from shared.database import is_resource_limit, transaction
from shared.logs import get_logger
from shared.payments import doorbell
from shared.payments.model import Reason, Status, lane_of
from shared.payments.queries import lanes as lane_queries
from shared.payments.queries import ledger, parked, users
from shared.payments.rules import Account, Outcome, Pending, PendingRow, fold, instants_to_scan

SETTLE_BATCH_ROWS: Final = 500
BULK_SHARE: Final = 4  # a quarter of a batch is for lists, however many single requests wait
MAX_SCANNED_ENTRIES: Final = 20_000  # for all users of one commit, unless a single user has more

log = get_logger("batch")


class BooksDisagree(Exception):
    """The numbers of rows read under the lock and written differ. The batch rolls back; an operator must look."""


class HistoryTooLong(Exception):
    """The entries that a late withdrawal needs cannot be read in time. A retry would not help, so the row is parked."""


@dataclass(frozen=True)
class Counts:
    """Numbers of rows; `settled` includes `rejected`. Counts are added with +."""

    settled: int = 0
    rejected: int = 0
    parked: int = 0

    @property
    def completed(self) -> int:
        """Returns the number of completed rows."""
        return self.settled - self.rejected

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.settled + other.settled, self.rejected + other.rejected, self.parked + other.parked)


@dataclass
class Batch:
    """The result of one commit. `lanes` were free; `unfinished_lanes` may have more rows to settle.

    `lists_wait`: some of those rows are of lists. `flagged_lanes` were flagged in the meantime. `moment` is the
    database clock (UTC) of the batch, None if it settled nothing.
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
        """Returns the numbers of rows settled and parked."""
        rejected = sum(outcome.status == Status.REJECTED for outcome in self.outcomes)
        return Counts(len(self.outcomes), rejected, self.parked)

    @property
    def settled_lanes(self) -> set[int]:
        """Returns the lanes in which rows became final."""
        return {lane_of(outcome.pending.user_id) for outcome in self.outcomes}


def settle_batch(
    lanes: Sequence[int], user_id: int | None = None, limit: int = SETTLE_BATCH_ROWS, *, draining: bool = False
) -> Batch | None:
    """Settles the next rows of lanes, or of one user in a lane, in one transaction. Returns None if all lanes are busy.

    A drain leaves the lane flags unchanged, because it reads all lanes anyway.
    Raises BooksDisagree or HistoryTooLong, and the errors of SQLAlchemy.
    """
    with transaction() as connection:
        free = lane_queries.try_lock_lanes(connection, lanes)
        if not free:
            return None
        if user_id is not None:
            # Other users wait for this one, so a user locked by another transaction is skipped.
            lane_queries.set_lock_timeout(connection)
        if not draining:
            # The only Redis call inside the transaction. It comes after the lock and before the read, so a commit that
            # is too late for this read finds no flag and rings.
            doorbell.clear_flags(free)
        batch = Batch(free)
        _settle_next(connection, batch, user_id, limit)
    # Look at the flags again after the commit, because a worker that found the lanes busy left its flag set. Do this
    # before logging, because clients wait.
    if not draining:
        batch.flagged_lanes = doorbell.publish_settled_and_find_flags(batch.lanes, batch.settled_lanes)
    elif batch.outcomes:
        doorbell.publish_settled(batch.settled_lanes)
    _report(batch)
    return batch


def _settle_next(connection: Connection, batch: Batch, user_id: int | None, limit: int) -> None:
    """Settles the next rows of the batch, and parks those that wait behind a parked row."""
    rows = _read_batch(connection, batch, limit) if user_id is None else _read_user(connection, batch, user_id, limit)
    behind = [row.pending.uid for row in rows if row.behind_parked]
    if behind:
        batch.parked = parked.park(connection, behind, "waits behind a parked one", failed=False)
    pending = [row.pending for row in rows if not row.behind_parked]
    if pending:
        _settle_rows(connection, pending, batch)


def _read_batch(connection: Connection, batch: Batch, limit: int) -> list[PendingRow]:
    """Returns the next rows of the batch's lanes in acceptance order, and marks the lanes with more rows."""
    lane_limit = -(-limit // len(batch.lanes))
    rows_by_lane: dict[int, list[PendingRow]] = {lane: [] for lane in batch.lanes}
    for row in lane_queries.read_pending(connection, batch.lanes, lane_limit):
        rows_by_lane[lane_of(row.pending.user_id)].append(row)
    rows = []
    for lane, waiting in rows_by_lane.items():
        picked = pick_rows(waiting, lane_limit)
        rows += picked
        bulk = sum(row.bulk for row in waiting)
        lists_remain = bulk == lane_limit or len(picked) < len(waiting)
        batch.lists_wait |= lists_remain
        if lists_remain or len(waiting) - bulk == lane_limit:
            batch.unfinished_lanes.add(lane)
    return sorted(rows, key=lambda row: row.accept_order)


def pick_rows(waiting: Sequence[PendingRow], limit: int) -> list[PendingRow]:
    """Returns the rows of a lane to settle now: all single requests that were read, and rows of lists in the room left.

    `waiting` are the lane's first `limit` single requests and its first `limit` rows of lists. If more single requests
    may exist than were read, only list rows accepted before the last single request read are taken. A later one may
    follow an unread single request of its user.
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


def _settle_rows(connection: Connection, pending: Sequence[Pending], batch: Batch) -> None:
    """Locks the accounts, processes the rows one by one, writes the outcomes, and stores the outcomes in the batch."""
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
        # A trigger reads the same entries again, so the time-out covers it, too.
        written = ledger.write(connection, outcomes, after.values(), moment)
    if written != (len(pending), len(after)):
        raise BooksDisagree(f"expected to write {len(pending)} rows and {len(after)} accounts, wrote {written}")
    batch.outcomes, batch.moment = outcomes, moment


def _cut_to_scannable(
    pending: Sequence[Pending], accounts: Mapping[int, Account], *, at_least_one: bool
) -> tuple[Sequence[Pending], dict[int, list[datetime]], set[int]]:
    """Returns the rows to settle, the instants to scan by user id, and the lanes that were cut.

    From the first row of a user with too many entries to scan in this commit, the lane's rows wait for the next batch.
    With `at_least_one` the first user is scanned, however many entries there are.
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
        pending = [row for index, row in enumerate(pending) if index < cuts.get(lane_of(row.user_id), len(pending))]
    return pending, scans, set(cuts)


def _by_user(pending: Sequence[Pending]) -> dict[int, list[Pending]]:
    """Returns each user's rows in their order; the users in the order of their first rows."""
    rows_by_user: dict[int, list[Pending]] = {}
    for row in pending:
        rows_by_user.setdefault(row.user_id, []).append(row)
    return rows_by_user


@contextmanager
def _scan_timeout(connection: Connection, user_ids: Collection[int]) -> Iterator[None]:
    """Allows the statements inside to read many entries. Raises HistoryTooLong if they hit a resource limit."""
    if not user_ids:
        yield
        return
    ledger.set_late_scan_timeout(connection)
    try:
        yield
    except DBAPIError as error:
        if is_resource_limit(error):
            raise HistoryTooLong(f"the entries of user {next(iter(user_ids))} take too long to read") from error
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
    for reason in Reason:  # zeros, too: a rate needs a first sample
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
