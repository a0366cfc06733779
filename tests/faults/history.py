"""What clients saw, as the runner writes it down and the checker reads it. Nothing here knows the service's code."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

Document = dict[str, Any]  # a transaction as the API shows it

FINAL = ("COMPLETED", "REJECTED")


class Attempt(NamedTuple):
    """One request for a transaction and its answer; `status` is None where none came. Seconds of one monotonic clock."""

    uid: str
    content: Document
    sent_at: float
    answered_at: float
    status: int | None
    document: Document | None = None

    @property
    def accepted(self) -> bool:
        """Whether the service has said that it has the transaction: a 2xx, or a rejection."""
        return self.document is not None


class Reading(NamedTuple):
    """A past balance as it was told; wall-clock instants of asking and hearing."""

    user_id: int
    instant: datetime
    asked_at: datetime
    heard_at: datetime
    balance: Decimal


class Recovery(NamedTuple):
    """After a fault: the seconds until all accepted so far were final, and those that were not in time."""

    fault: str
    seconds: float
    stuck: tuple[str, ...] = ()


class Row(NamedTuple):
    """A transaction in the database, with its ledger entry and its event where it has them."""

    uid: str
    user_id: int
    status: str
    accept_order: int
    entries: int
    seq: int | None
    amount: Decimal | None  # signed, of the entry
    balance_after: Decimal | None
    effective_at: datetime | None
    recorded_at: datetime | None
    events: int
    user_seq: int | None


@dataclass
class Books:
    """What the API says at the end, all faults healed: every user's statement and balance; and the rows."""

    statements: dict[int, list[Document]]
    balances: dict[int, Decimal]
    rows: list[Row]
    verify_exit: int = 0
    queued: int = 0  # rings in the broker
    told: dict[int, list[int]] | None = None  # by user, the user_seq of each delivery as they came; None: no webhook
    leaks: list[str] = field(default_factory=list)


@dataclass
class History:
    """All that happened. `sightings` are answers to look-ups: (sent, heard, document)."""

    attempts: list[Attempt] = field(default_factory=list)
    sightings: list[tuple[float, float, Document]] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)


def documents(books: Books) -> list[Document]:
    """Of all statements."""
    return [document for statement in books.statements.values() for document in statement]


def instant_of(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def effective_of(row: Row) -> datetime:
    assert row.effective_at is not None
    return row.effective_at


def by_user(rows: Iterable[Row]) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        found[row.user_id].append(row)
    return found
