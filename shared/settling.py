"""Settle a lane: its PENDING rows in acceptance order, one commit per batch, one worker at a time.

The lane's lock is tried, never waited for: with waiting, every process ends up asleep on one busy lane. Lock,
read and clock are statements of their own, since what a statement sees is fixed when it begins.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from shared import doorbell, metrics
from shared.database import is_too_much, transaction
from shared.ledger import Account, Outcome, Past, Pending, fold, instants_to_scan
from shared.logs import get_logger
from shared.queries import lanes, ledger, parked, server, transactions, users
from shared.status import Status

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
    """What one commit did. `more`: the lane may hold rows that it did not read."""

    outcomes: list[Outcome] = field(default_factory=list)
    moment: datetime | None = None
    parked: int = 0
    more: bool = False


@dataclass
class Slice:
    """What a slice of work on a lane did. `busy`: another process had the lane. The counts are of rows."""

    lane: int
    settled: int = 0
    parked: int = 0
    busy: bool = False

    def __str__(self) -> str:
        if self.busy and not self.settled:
            return f"lane {self.lane} is busy elsewhere"
        return f"lane {self.lane}: {self.settled} settled, {self.parked} parked"


def settle_lane(lane: int) -> Slice:
    """Settle a lane until it is empty or the slice's time is over; then hand it back by ringing.

    Raises the first error met. What was committed before it stays; the rest is PENDING as it was.
    """
    done = Slice(lane)
    ends = time.monotonic() + SLICE_SECONDS
    while True:
        batch = settle_batch(lane)
        if batch is None:
            done.busy = True
            return done
        done.settled += len(batch.outcomes)
        done.parked += batch.parked
        # Looked at after the commit, which let go of the lock: a worker that came before that has left again.
        if not batch.more and not doorbell.rung(lane):
            return done
        if time.monotonic() > ends:
            doorbell.hush(lane)  # or else the ring below would ride on a message that may be spent
            doorbell.ring(lane, str(batch.outcomes[-1].pending.uid) if batch.outcomes else f"lane-{lane}", None)
            return done


def settle_batch(lane: int, user_id: int | None = None, limit: int = BATCH_ROWS) -> Batch | None:
    """Settle the next rows of a lane, or of one user in it, in one transaction. None: the lane is busy."""
    with transaction() as connection:
        if not lanes.try_lock_lane(connection, lane):
            return None
        if user_id is not None:
            lanes.hurry(connection)  # others wait behind this user: one who is locked elsewhere is passed over
        # The one network call inside a transaction. After the lock and before the read: whoever commits too
        # late for this read finds the key gone and rings.
        doorbell.hush(lane)
        rows = lanes.read_pending(connection, lane, limit, user_id)
        batch = Batch(more=len(rows) == limit)
        if not rows:
            return batch
        behind = [row.pending.uid for row in rows if row.behind_parked]
        if behind:
            batch.parked = parked.park(connection, behind, "waits behind a parked one", failed=False)
        pending = [row.pending for row in rows if not row.behind_parked]
        if pending:
            batch.outcomes, batch.moment = _settle(connection, pending)
            batch.more = batch.more or len(batch.outcomes) < len(pending)
    _report(lane, batch)
    return batch


def _settle(connection: Connection, pending: Sequence[Pending]) -> tuple[list[Outcome], datetime]:
    """Lock, fold, write: the outcomes of the rows taken, from the front, and the moment of settling."""
    accounts = users.lock_accounts(connection, {row.user_id for row in pending})
    pending, late = _cut_to_scannable(pending, accounts)
    with _time_to_scan(connection, late):
        pasts = _scan_pasts(connection, pending, late)
        moment = server.read_clock(connection)
        outcomes, after = fold(pending, {row.user_id: accounts[row.user_id] for row in pending}, pasts, moment)
        ledger.insert_entries(connection, outcomes, moment)  # the trigger reads the same past once more
    written = users.write_accounts(connection, after.values())
    final = transactions.make_final(connection, outcomes, moment)
    ledger.insert_events(connection, outcomes, moment)
    if (written, final) != (len(after), len(pending)):
        raise BooksDisagree(f"{final} of {len(pending)} rows, {written} of {len(after)} accounts were written")
    return outcomes, moment


def _cut_to_scannable(
    pending: Sequence[Pending], accounts: Mapping[int, Account]
) -> tuple[Sequence[Pending], list[Account]]:
    """The rows, cut where their users' pasts would be too much to scan for one commit, and whose must be.

    One past is always scanned, however long; more only while they are short. The rest wait for their turn.
    """
    late: list[Account] = []
    for user_id, rows in _by_user(pending).items():
        if instants_to_scan(accounts[user_id], rows):
            late.append(accounts[user_id])
            if len(late) > 1 and sum(account.last_seq for account in late) > SCAN_ENTRIES:
                cut = next(index for index, row in enumerate(pending) if row.user_id == user_id)
                return pending[:cut], late[:-1]
    return pending, late


def _scan_pasts(connection: Connection, pending: Sequence[Pending], late: Sequence[Account]) -> dict[int, Past]:
    rows = _by_user(pending)
    starts = {account.user_id: instants_to_scan(account, rows[account.user_id]) for account in late}
    # a cut may have taken the rows that a scan was for
    return {a.user_id: ledger.scan_past(connection, a, starts[a.user_id]) for a in late if starts[a.user_id]}


def _by_user(pending: Sequence[Pending]) -> dict[int, list[Pending]]:
    """Each user's rows in their order; the users in the order of their first rows."""
    found: dict[int, list[Pending]] = {}
    for row in pending:
        found.setdefault(row.user_id, []).append(row)
    return found


@contextmanager
def _time_to_scan(connection: Connection, late: Sequence[Account]) -> Iterator[None]:
    """Allow what reading a long past takes. Raises PastTooLong where even that is not enough."""
    if not late:
        yield
        return
    ledger.allow_late_scan(connection)
    try:
        yield
    except DBAPIError as error:
        if is_too_much(error):
            raise PastTooLong(f"the past of user {late[0].user_id} takes too long to read") from error
        raise


def _report(lane: int, batch: Batch) -> None:
    if batch.parked:
        metrics.PARKED.inc(batch.parked)
        log.error("parked behind a parked one", lane=lane, parked=batch.parked)
    if batch.moment is None:
        return
    completed = sum(outcome.status == Status.COMPLETED for outcome in batch.outcomes)
    metrics.SETTLED.labels(Status.COMPLETED.value).inc(completed)
    metrics.SETTLED.labels(Status.REJECTED.value).inc(len(batch.outcomes) - completed)
    for outcome in batch.outcomes:
        metrics.TIME_TO_FINAL.observe((batch.moment - outcome.pending.accepted_at).total_seconds())
    log.info(
        "settled",
        lane=lane,
        completed=completed,
        rejected=len(batch.outcomes) - completed,
        transactions=[(str(o.pending.uid), o.reason or o.status, o.pending.request_id) for o in batch.outcomes],
    )
