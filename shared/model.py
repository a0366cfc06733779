"""The domain types of payments: what use cases, statements, views and commands share. No logic beyond the lane of a user.

The words of the enums are those of URLs, JSON, columns and logs.
"""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple
from uuid import UUID

LANES: Final = 16  # a constant of the schema: transactions.lane is generated as user_id % 16


class Type(StrEnum):
    DEPOSIT = "DEPOSIT"
    WITHDRAW = "WITHDRAW"


class Status(StrEnum):
    PENDING = "PENDING"
    COMPLETED = "COMPLETED"
    REJECTED = "REJECTED"


class Reason(StrEnum):
    """Why a transaction was rejected: facts of business, read under the lock. Machinery never rejects."""

    INSUFFICIENT_FUNDS = "insufficient_funds"
    BALANCE_LIMIT = "balance_limit"


class EventType(StrEnum):
    COMPLETED = "transaction.completed"
    REJECTED = "transaction.rejected"


def lane_of(user_id: int) -> int:
    """The lane, 0 to 15, that settles this user's transactions."""
    return user_id % LANES


class TransactionRequest(NamedTuple):
    """A transaction as a client asked for it. `amount` in minor units, `requested_at` UTC or None.

    `arrived` is time.monotonic() when it came in, None for "just now": it counts as accepted from then on, so that
    no queue of ours makes a client's "now" too old.
    """

    uid: UUID
    user_id: int
    type: Type
    amount: int
    requested_at: datetime | None
    request_id: str | None = None
    arrived: float | None = None


class Transaction(NamedTuple):
    """A transaction as it stands. Amounts in minor units; the last two are None unless COMPLETED.

    `lowest_balance`: see `shared.ledger.Outcome`.
    """

    uid: UUID
    user_id: int
    type: Type
    amount: int
    requested_at: datetime | None
    status: Status
    reason: str | None
    accepted_at: datetime
    settled_at: datetime | None
    accept_order: int
    lane: int
    lowest_balance: int | None
    effective_at: datetime | None
    balance_after: int | None


class User(NamedTuple):
    """A user. `balance` in minor units."""

    id: int
    name: str
    created_at: datetime
    balance: int


class StatementKey(NamedTuple):
    """Where a page ended: the last item's place in the index that orders the statement."""

    accepted_at: datetime
    accept_order: int


class StatementFilter(NamedTuple):
    """What the statement is narrowed to; None: not. `since` and `until` are half-open on accepted_at."""

    status: Status | None = None
    type: Type | None = None
    since: datetime | None = None
    until: datetime | None = None


class Event(NamedTuple):
    """An outcome as others are told of it. `balance` in minor units: the user's, after it."""

    id: int
    user_id: int
    user_seq: int
    type: EventType
    balance: int
    occurred_at: datetime
    transaction: Transaction


class Story(NamedTuple):
    """A transaction with all that belongs to it. What is not there (yet, or any more) is None."""

    transaction: Transaction
    request_id: str | None
    parked_at: datetime | None
    attempts: int
    last_error: str | None
    user_name: str
    user_balance: int
    seq: int | None
    history_at: datetime | None
    late: bool | None
    event_id: int | None
    user_seq: int | None
    balance_before: int | None
    parked_before: UUID | None  # the user's parked one that this one waits behind
    pending_before: int  # in its lane, as far as it waits for them: a single request does not wait for lists


class Backlog(NamedTuple):
    """Unparked PENDING rows, the oldest one's age in seconds, parked rows; the unparked ones of each lane.

    At most `shared.queries.lanes.MAX_PARKED_COUNTED` parked rows are counted.
    """

    pending: int
    oldest_seconds: float
    parked: int
    of_lanes: Sequence[int] = ()


class ParkedRow(NamedTuple):
    """A parked transaction. `attempts` is how often settling it has failed: 0 for one that waits behind."""

    uid: UUID
    user_id: int
    lane: int
    accept_order: int
    amount: int
    type: str
    parked_at: datetime
    attempts: int
    last_error: str | None


class ErrorCount(NamedTuple):
    """How many parked rows, of how many users, have an error (its first 200 characters)."""

    error: str
    rows: int
    users: int


class RowCounts(NamedTuple):
    """The rows of a range that were checked; `parked` are among the pending."""

    users: int = 0
    entries: int = 0
    completed: int = 0
    rejected: int = 0
    pending: int = 0
    parked: int = 0


class Difference(NamedTuple):
    """Something that is not as it must be: whose, which row, what of it. Amounts in minor units."""

    user_id: int | None
    row: str
    what: str
    expected: str | None
    found: str | None


class Verification(NamedTuple):
    """The last recorded run of `verify`: how many seconds ago it ended, and how many differences it found."""

    age_seconds: float
    differences: int
