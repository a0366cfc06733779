"""The rules of money: pending transactions and the accounts they move in, outcomes out. No IO, no clock.

Everything that decides whether money moves is in `judge`, and everything it knows was read under the lane's
lock. A batch is folded in acceptance order, so what one row does, the next one of its user sees.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

from shared.model import EventType, Reason, Status, Type
from shared.money import MAX_BALANCE

# A client's timestamp this close to acceptance means "now": neither its clock nor our queue is that exact.
CLOCK_TOLERANCE: Final = timedelta(seconds=60)
BEGINNING: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(slots=True)
class Account:
    """A user's row as the fold moves it on. `balance` in minor units; `last_history_at` UTC or None."""

    user_id: int
    balance: int
    last_seq: int
    last_history_at: datetime | None
    last_event_seq: int


@dataclass(frozen=True, slots=True)
class Pending:
    """A transaction to settle. `amount` in positive minor units, instants UTC."""

    uid: UUID
    user_id: int
    type: Type
    amount: int
    requested_at: datetime | None
    accepted_at: datetime
    request_id: str | None = None

    @property
    def keeps_timestamp(self) -> bool:
        """Whether the client's timestamp is older than "now" can mean, so that history counts it there."""
        return self.requested_at is not None and self.requested_at < self.accepted_at - CLOCK_TOLERANCE

    @property
    def change(self) -> int:
        """The signed amount, in minor units."""
        return self.amount if self.type == Type.DEPOSIT else -self.amount


class PendingRow(NamedTuple):
    """A row to settle. `bulk`: it waits with the lists; `behind_parked`: an earlier one of its user is parked."""

    pending: Pending
    accept_order: int
    attempts: int
    bulk: bool
    behind_parked: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the ledger. `history_at` is the running maximum of `effective_at` over the user's entries."""

    seq: int
    amount: int
    balance_after: int
    effective_at: datetime
    history_at: datetime


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a transaction, with the event that tells of it. `entry` is None when rejected.

    `lowest_balance` is set where a late withdrawal was rejected only because it is dated back, so that the same without
    a timestamp would have completed: the lowest balance, in minor units, from its instant on.
    """

    pending: Pending
    status: Status
    reason: Reason | None
    entry: Entry | None
    event: EventType
    user_seq: int
    balance_before: int
    balance_after: int
    lowest_balance: int | None = None


class LowestBalances:
    """The lowest balance of one user from each of some instants to the next, kept current within a batch.

    A late withdrawal may not make the balance negative at any instant from its own on. Instants, not partial
    sums: entries of one instant count together. `starts` must hold, in order, every instant before the
    account's last history at which an entry of the batch can lie (see `instants_to_scan`); from the last
    history on the balance is constant, so new starts may be added there.
    """

    def __init__(self, starts: Sequence[datetime], lowest: Sequence[int]) -> None:
        self._starts = list(starts)
        self._lowest = list(lowest)

    @classmethod
    def flat(cls, account: Account) -> "LowestBalances":
        """For an account none of whose older instants will be asked for."""
        return cls([account.last_history_at or BEGINNING], [account.balance])

    def lowest_from(self, instant: datetime) -> int:
        """The lowest balance, in minor units, at any instant from this one on."""
        return min(self._lowest[self._start(instant) :])

    def record(self, instant: datetime, change: int) -> None:
        """Count an entry of `change` minor units at the instant."""
        for index in range(self._start(instant), len(self._starts)):
            self._lowest[index] += change

    def _start(self, instant: datetime) -> int:
        index = bisect_left(self._starts, instant)
        known = index < len(self._starts) and self._starts[index] == instant
        if not known and index > 0:  # before the first start nothing is asked for
            self._starts.insert(index, instant)
            self._lowest.insert(index, self._lowest[index - 1])
        return index


def instants_to_scan(account: Account, batch: Sequence[Pending]) -> list[datetime]:
    """The starts of the `LowestBalances` that settling these rows of one user needs from the ledger, in order.

    Empty where no scan is needed: no withdrawal lies before the last history, or none that does could pass
    the cheap test of the balance.
    """
    if account.last_history_at is None:
        return []
    max_balance = account.balance + sum(row.amount for row in batch if row.type == Type.DEPOSIT)
    late = [
        row.requested_at
        for row in batch
        if row.type == Type.WITHDRAW
        and row.keeps_timestamp
        and row.requested_at is not None
        and row.requested_at < account.last_history_at
        and row.amount <= max_balance
    ]
    if not late:
        return []
    kept_instants = {row.requested_at for row in batch if row.requested_at is not None and row.keeps_timestamp}
    return sorted({instant for instant in kept_instants if instant >= min(late)} | {account.last_history_at})


def effective_instant(row: Pending, account: Account, moment: datetime) -> datetime:
    """When the money moves: the client's older timestamp, or else now, never before the last history.

    `moment` is the database's clock, read after the locks. So no entry lies in the future, and neither a
    client's clock within 60 s nor a slow queue makes an entry late.
    """
    if row.keeps_timestamp and row.requested_at is not None:
        return row.requested_at
    at = moment if row.requested_at is None else min(row.requested_at, moment)
    return at if account.last_history_at is None else max(at, account.last_history_at)


def judge(row: Pending, account: Account, lowest: LowestBalances | None, at: datetime) -> Reason | None:
    """The business reason to reject the row, or None. `lowest` is None only where nothing can be late."""
    if row.type == Type.DEPOSIT:
        return Reason.BALANCE_LIMIT if account.balance + row.amount > MAX_BALANCE else None
    if account.balance < row.amount:
        return Reason.INSUFFICIENT_FUNDS
    if account.last_history_at is None or at >= account.last_history_at:
        return None
    if lowest is None:
        raise ValueError(f"the late withdrawal {row.uid} cannot be judged without its user's past")
    return Reason.INSUFFICIENT_FUNDS if lowest.lowest_from(at) < row.amount else None


def settle(row: Pending, account: Account, lowest: LowestBalances | None, moment: datetime) -> Outcome:
    """Judge one row, move the account (and its past) on, and say what became of it."""
    at = effective_instant(row, account, moment)
    before = account.balance
    reason = judge(row, account, lowest, at)
    account.last_event_seq += 1
    if reason:
        is_covered_now = reason == Reason.INSUFFICIENT_FUNDS and before >= row.amount
        return Outcome(
            row,
            Status.REJECTED,
            reason,
            None,
            EventType.REJECTED,
            account.last_event_seq,
            before,
            before,
            lowest.lowest_from(at) if lowest is not None and is_covered_now else None,
        )
    if lowest is not None:
        lowest.record(at, row.change)
    account.balance += row.change
    account.last_seq += 1
    account.last_history_at = at if account.last_history_at is None else max(at, account.last_history_at)
    entry = Entry(account.last_seq, row.change, account.balance, at, account.last_history_at)
    return Outcome(
        row,
        Status.COMPLETED,
        None,
        entry,
        EventType.COMPLETED,
        account.last_event_seq,
        before,
        account.balance,
    )


def fold(
    batch: Sequence[Pending], accounts: Mapping[int, Account], scanned: Mapping[int, LowestBalances], moment: datetime
) -> tuple[list[Outcome], dict[int, Account]]:
    """Settle a batch in its order: the outcomes, one per row, and the accounts as they are afterwards.

    `accounts` holds every user of the batch and stays as it is. `scanned` holds the scanned ones; a user with
    an older withdrawal that needs no scan gets a flat past, since a batch-mate may make that one late.
    """
    after = {user_id: replace(account) for user_id, account in accounts.items()}
    tracked = dict(scanned)
    for row in batch:
        if row.type == Type.WITHDRAW and row.keeps_timestamp:
            tracked.setdefault(row.user_id, LowestBalances.flat(accounts[row.user_id]))
    outcomes = [settle(row, after[row.user_id], tracked.get(row.user_id), moment) for row in batch]
    return outcomes, after
