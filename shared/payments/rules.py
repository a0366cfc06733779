"""The rules of money: turns pending transactions and accounts into outcomes, without IO or clock.

`judge` alone decides whether money moves, from values read under the lane lock. A batch is processed row by row in
acceptance order, so each row sees the effect of its user's earlier rows.

| instant | meaning |
|---|---|
| `requested_at` | the client's timestamp, or None |
| `moment` | the database clock of the batch, read after the locks |
| `effective_at`, `at` | when the entry counts: an old `requested_at`, otherwise about `moment` (`effective_instant`) |
| `history_at` | the latest `effective_at` of the user's entries so far; `last_history_at` is that of the last entry |
| `instant` | any instant at which a balance is asked for |
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

from shared.money import MAX_BALANCE
from shared.payments.model import EventType, Reason, Status, Type

# A timestamp this close to acceptance means "now": client clocks and our queue are less exact than this.
CLOCK_TOLERANCE: Final = timedelta(seconds=60)
BEGINNING: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(slots=True)
class Account:
    """A user's row, which `fold` updates. `balance` in minor units; `last_history_at` UTC or None."""

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
        """Returns whether the client's timestamp is too old to mean "now", so that history uses it."""
        return self.requested_at is not None and self.requested_at < self.accepted_at - CLOCK_TOLERANCE

    @property
    def change(self) -> int:
        """Returns the signed amount, in minor units."""
        return self.amount if self.type == Type.DEPOSIT else -self.amount


class PendingRow(NamedTuple):
    """A row to settle. `bulk`: it waits with the lists. `behind_parked`: an earlier row of its user is parked."""

    pending: Pending
    accept_order: int
    attempts: int
    bulk: bool
    behind_parked: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the ledger. Amounts in minor units, instants UTC.

    `history_at` is the running maximum of `effective_at` over the user's entries.
    """

    seq: int
    amount: int
    balance_after: int
    effective_at: datetime
    history_at: datetime


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of settling a transaction, with its event. Amounts in minor units. `entry` is None if rejected.

    `lowest_balance` is set only if a late withdrawal is rejected although today's balance covers it, because a past
    balance does not. It is the lowest balance from its instant on.
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
    """The lowest balance of one user between each instant and the next, in minor units, kept current within a batch.

    A late withdrawal must not make the balance negative at any instant from its own on. Entries of one instant count
    together, so partial sums within an instant do not matter. `starts` must hold, in order, each instant before the
    account's `last_history_at` at which the batch can write an entry (see `instants_to_scan`). From `last_history_at`
    on the balance is constant, so new starts may be added there.

    Example: `starts` of 1 May and 10 May with `lowest` of 20 and 50 mean a balance of at least 20 from 1 May until
    10 May, and of 50 from then on. A withdrawal of 30 dated 1 May is rejected, one dated 10 May is not.
    """

    def __init__(self, starts: Sequence[datetime], lowest: Sequence[int]) -> None:
        self._starts = list(starts)
        self._lowest = list(lowest)

    @classmethod
    def constant(cls, account: Account) -> "LowestBalances":
        """Returns one constant balance, for an account whose older instants are not needed."""
        return cls([account.last_history_at or BEGINNING], [account.balance])

    def lowest_from(self, instant: datetime) -> int:
        """Returns the lowest balance, in minor units, at any instant from this one on."""
        return min(self._lowest[self._start(instant) :])

    def record(self, instant: datetime, change: int) -> None:
        """Adds an entry of `change` minor units at the instant."""
        for index in range(self._start(instant), len(self._starts)):
            self._lowest[index] += change

    def _start(self, instant: datetime) -> int:
        index = bisect_left(self._starts, instant)
        known = index < len(self._starts) and self._starts[index] == instant
        if not known and index > 0:  # no caller uses an instant before the first start
            self._starts.insert(index, instant)
            self._lowest.insert(index, self._lowest[index - 1])
        return index


def instants_to_scan(account: Account, batch: Sequence[Pending]) -> list[datetime]:
    """Returns, in order, the instants at which settling these rows of one user needs `LowestBalances` from the ledger.

    The list is empty if no scan is needed: no withdrawal is late, or the amount of each late one is larger than any
    balance the user can reach in this batch, so it is rejected anyway.
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
    """Returns the instant (UTC) of the entry: an old client timestamp, otherwise now.

    "Now" is never before the user's latest effective instant (`last_history_at`). `moment` is the database clock, read
    after the locks, so no entry is in the future. A client clock within 60 s or a slow queue does not make an entry
    late.
    """
    if row.keeps_timestamp and row.requested_at is not None:
        return row.requested_at
    at = moment if row.requested_at is None else min(row.requested_at, moment)
    return at if account.last_history_at is None else max(at, account.last_history_at)


def judge(row: Pending, account: Account, lowest: LowestBalances | None, at: datetime) -> Reason | None:
    """Returns the business reason to reject the row, or None. `lowest` may be None only if the row cannot be late.

    Raises ValueError if the row is a late withdrawal and `lowest` is None.
    """
    if row.type == Type.DEPOSIT:
        return Reason.BALANCE_LIMIT if account.balance + row.amount > MAX_BALANCE else None
    if account.balance < row.amount:
        return Reason.INSUFFICIENT_FUNDS
    if account.last_history_at is None or at >= account.last_history_at:
        return None
    if lowest is None:
        raise ValueError(f"the late withdrawal {row.uid} cannot be judged without the lowest balances of its user")
    return Reason.INSUFFICIENT_FUNDS if lowest.lowest_from(at) < row.amount else None


def settle_row(row: Pending, account: Account, lowest: LowestBalances | None, moment: datetime) -> Outcome:
    """Settles one row: updates the account and its lowest balances, and returns the outcome."""
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
    """Settles a batch in its order. Returns one outcome for each row, and the updated accounts by user id.

    `accounts` holds every user of the batch and is not changed. `scanned` holds the lowest balances of scanned users.
    A user with a backdated withdrawal that needs no scan starts with a constant balance; earlier rows of the batch may
    still make it late.
    """
    after = {user_id: replace(account) for user_id, account in accounts.items()}
    tracked = dict(scanned)
    for row in batch:
        if row.type == Type.WITHDRAW and row.keeps_timestamp:
            tracked.setdefault(row.user_id, LowestBalances.constant(accounts[row.user_id]))
    outcomes = [settle_row(row, after[row.user_id], tracked.get(row.user_id), moment) for row in batch]
    return outcomes, after
