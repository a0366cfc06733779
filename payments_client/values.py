"""The values of requests and responses, as frozen dataclasses, and the uid that identifies a payment."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID


def make_uid() -> UUID:
    """Returns a UUIDv7 (RFC 9562): 48 bits of milliseconds, then 74 random bits.

    Consecutive uids are neighbours in the service's indexes. A random uid (v4) touches another page of each index,
    which the database must read, and write in full to its log. (Python has uuid7 since 3.14.)
    """
    value = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    value = value & ~(0xF << 76) | 7 << 76  # version
    return UUID(int=value & ~(3 << 62) | 2 << 62)  # variant


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment to send: DEPOSIT or WITHDRAW. Store its uid before you send it, because a repeat needs the same uid."""

    type: str
    user_id: int
    amount: str | Decimal
    timestamp: datetime | None = None  # only for backdating: the instant at which the money moved
    uid: UUID = field(default_factory=make_uid)

    def __post_init__(self) -> None:
        if not isinstance(self.amount, str | Decimal):
            raise TypeError(f"an amount is a str or a Decimal, not a {type(self.amount).__name__}")
        if self.timestamp is not None and self.timestamp.tzinfo is None:
            raise ValueError("a timestamp needs a time zone")

    def as_json(self) -> dict[str, Any]:
        """Returns the payment as the JSON object that the service accepts."""
        amount = self.amount if isinstance(self.amount, str) else format(self.amount, "f")
        at = {"timestamp": self.timestamp.isoformat()} if self.timestamp else {}
        return {"uid": str(self.uid), "user_id": self.user_id, "type": self.type, "amount": amount, **at}


@dataclass(frozen=True, slots=True)
class Transaction:
    """A transaction in its current state. `settled_at` and `balance_after` are None until it is final."""

    uid: UUID
    user_id: int
    type: str
    amount: Decimal
    status: str  # PENDING, COMPLETED or REJECTED
    reason: str | None
    timestamp: datetime | None
    accepted_at: datetime
    settled_at: datetime | None
    balance_after: Decimal | None
    replayed: bool = field(default=False, compare=False)  # an earlier request had created it

    @classmethod
    def of(cls, document: Mapping[str, Any], replayed: bool = False) -> "Transaction":
        """Returns the transaction of a JSON object."""
        after = document["balance_after"]
        return cls(
            UUID(document["uid"]),
            document["user_id"],
            document["type"],
            Decimal(document["amount"]),
            document["status"],
            document["reason"],
            _instant_or_none(document["timestamp"]),
            instant_of(document["accepted_at"]),
            _instant_or_none(document["settled_at"]),
            None if after is None else Decimal(after),
            replayed,
        )

    @property
    def is_final(self) -> bool:
        """Returns whether the transaction is COMPLETED or REJECTED."""
        return self.status != "PENDING"


@dataclass(frozen=True, slots=True)
class Result:
    """The state of one payment of a list. If REJECTED or INVALID, `code` and `detail` have the reason."""

    uid: UUID
    status: str  # PENDING, COMPLETED, REJECTED or INVALID (not stored)
    code: str | None = None
    detail: str | None = None

    @classmethod
    def of(cls, uid: UUID, document: Mapping[str, Any]) -> "Result":
        """Returns the result of a JSON object, with the uid of the payment."""
        return cls(uid, document["status"], document.get("code"), document.get("detail"))


@dataclass(frozen=True, slots=True)
class Event:
    """The outcome of a transaction. `balance` is the user's after it; `user_seq` numbers the user's events from 1."""

    id: int
    type: str  # transaction.completed or transaction.rejected
    user_id: int
    user_seq: int
    balance: Decimal
    occurred_at: datetime
    transaction: Transaction

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Event":
        """Returns the event of a JSON object."""
        return cls(
            document["id"],
            document["type"],
            document["user_id"],
            document["user_seq"],
            Decimal(document["balance"]),
            instant_of(document["occurred_at"]),
            Transaction.of(document["transaction"]),
        )


@dataclass(frozen=True, slots=True)
class EventPage:
    """A page of events in order. `next` is the cursor of the next page."""

    items: list[Event]
    next: str

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "EventPage":
        """Returns the page of a JSON object."""
        return cls([Event.of(item) for item in document["items"]], document["next"])


@dataclass(frozen=True, slots=True)
class User:
    """A user."""

    id: int
    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Balance:
    """The balance of a user at the instant `date`."""

    user_id: int
    balance: Decimal
    date: datetime


def instant_of(text: str) -> datetime:
    """Returns the instant of an ISO 8601 text, in UTC."""
    return datetime.fromisoformat(text).astimezone(UTC)


def _instant_or_none(text: str | None) -> datetime | None:
    return None if text is None else instant_of(text)
