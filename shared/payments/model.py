"""Domain types of payments, shared by use cases, statements, views and commands. The only logic is the lane of a user.

URLs, JSON, columns and logs use the words of these enums.
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
    """The business reason of a rejection, decided under the lock. Infrastructure errors never reject a transaction."""

    INSUFFICIENT_FUNDS = "insufficient_funds"
    BALANCE_LIMIT = "balance_limit"


class EventType(StrEnum):
    COMPLETED = "transaction.completed"
    REJECTED = "transaction.rejected"


def lane_of(user_id: int) -> int:
    """Returns the lane, 0 to 15, that settles this user's transactions."""
    return user_id % LANES


class TransactionRequest(NamedTuple):
    """A transaction as a client requested it. `amount` in minor units, `requested_at` UTC or None.

    `arrived` is time.monotonic() at the arrival of the request; None means now. The acceptance time counts from the
    arrival, so that waiting in our queues does not make a client's timestamp old.
    """

    uid: UUID
    user_id: int
    type: Type
    amount: int
    requested_at: datetime | None
    request_id: str | None = None
    arrived: float | None = None


class Transaction(NamedTuple):
    """A stored transaction. Amounts in minor units, instants UTC. The last two fields are None unless COMPLETED.

    `lowest_balance`: see `shared.payments.rules.Outcome`.
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
    """A user. `balance` in minor units, `created_at` UTC."""

    id: int
    name: str
    created_at: datetime
    balance: int


class StatementKey(NamedTuple):
    """The index key of the last item of a statement page. The next page begins after it."""

    accepted_at: datetime
    accept_order: int


class StatementFilter(NamedTuple):
    """The filters of a statement; None means no filter. accepted_at is at or after `since`, and before `until`."""

    status: Status | None = None
    type: Type | None = None
    since: datetime | None = None
    until: datetime | None = None


class Event(NamedTuple):
    """A published outcome. `balance` is the user's balance after it, in minor units; `occurred_at` UTC."""

    id: int
    user_id: int
    user_seq: int
    type: EventType
    balance: int
    occurred_at: datetime
    transaction: Transaction


class Story(NamedTuple):
    """A transaction with its user, entry, event and place in the queue. A part that does not exist is None."""

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
    parked_before: UUID | None  # the user's first parked transaction that this one waits behind
    pending_before: int  # earlier rows of its lane that it waits for: a single request does not wait for lists


class Backlog(NamedTuple):
    """The numbers of unparked and parked PENDING rows, the age of the oldest unparked one, and the unparked by lane.

    At most `shared.payments.queries.lanes.MAX_PARKED_COUNTED` parked rows are counted.
    """

    pending: int
    oldest_seconds: float
    parked: int
    of_lanes: Sequence[int] = ()


class ParkedRow(NamedTuple):
    """A parked transaction. `amount` in minor units. `attempts` counts its failures: 0 if it waits behind another."""

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
    """The numbers of parked rows and of users with the same error (its first 200 characters)."""

    error: str
    rows: int
    users: int


class RowCounts(NamedTuple):
    """The numbers of rows checked in a range. `pending` includes `parked`."""

    users: int = 0
    entries: int = 0
    completed: int = 0
    rejected: int = 0
    pending: int = 0
    parked: int = 0


class Difference(NamedTuple):
    """A failed check: the user, the row, and the expected and the stored value. Amounts in minor units."""

    user_id: int | None
    row: str
    what: str
    expected: str | None
    found: str | None


class Verification(NamedTuple):
    """The last recorded run of `verify`: the seconds since it ended, and its number of differences."""

    age_seconds: float
    differences: int
