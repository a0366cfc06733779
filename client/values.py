"""What goes to the service and what comes back, as frozen values; and the uid that makes a payment one payment."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID


def make_uid() -> UUID:
    """A UUIDv7 (RFC 9562): milliseconds first, then 74 random bits.

    Uids made one after the other lie side by side in the service's indexes. A random one (v4) touches another page
    of each index at every payment: pages to read, and to write whole into the log. (Python has uuid7 from 3.14 on.)
    """
    value = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    value = value & ~(0xF << 76) | 7 << 76  # version
    return UUID(int=value & ~(3 << 62) | 2 << 62)  # variant


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment to ask for: DEPOSIT or WITHDRAW. Keep its uid before you send: whoever repeats it needs it."""

    type: str
    user_id: int
    amount: str | Decimal
    timestamp: datetime | None = None  # for backdating: when the money moved; a live payment bears none
    uid: UUID = field(default_factory=make_uid)

    def __post_init__(self) -> None:
        if not isinstance(self.amount, str | Decimal):
            raise TypeError(f"an amount is a str or a Decimal, not a {type(self.amount).__name__}")
        if self.timestamp is not None and self.timestamp.tzinfo is None:
            raise ValueError("a timestamp needs its time zone")

    def as_json(self) -> dict[str, Any]:
        amount = self.amount if isinstance(self.amount, str) else format(self.amount, "f")
        at = {"timestamp": self.timestamp.isoformat()} if self.timestamp else {}
        return {"uid": str(self.uid), "user_id": self.user_id, "type": self.type, "amount": amount, **at}


@dataclass(frozen=True, slots=True)
class Transaction:
    """A transaction as it stands. `settled_at` and `balance_after` are None until it is final."""

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
    replayed: bool = field(default=False, compare=False)  # an earlier request had brought it

    @classmethod
    def of(cls, document: Mapping[str, Any], replayed: bool = False) -> "Transaction":
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
        return self.status != "PENDING"


@dataclass(frozen=True, slots=True)
class Result:
    """How one payment of a list stands; where REJECTED or INVALID, `code` and `detail` say why."""

    uid: UUID
    status: str  # PENDING, COMPLETED, REJECTED or INVALID: nothing is stored of the last
    code: str | None = None
    detail: str | None = None

    @classmethod
    def of(cls, uid: UUID, document: Mapping[str, Any]) -> "Result":
        return cls(uid, document["status"], document.get("code"), document.get("detail"))


@dataclass(frozen=True, slots=True)
class Event:
    """What became of a transaction. `balance` is the user's after it; `user_seq` counts the user's outcomes from 1."""

    id: int
    type: str  # transaction.completed or transaction.rejected
    user_id: int
    user_seq: int
    balance: Decimal
    occurred_at: datetime
    transaction: Transaction

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Event":
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
    """Some events in their order, and where the next ones begin."""

    items: list[Event]
    next: str

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "EventPage":
        return cls([Event.of(item) for item in document["items"]], document["next"])


@dataclass(frozen=True, slots=True)
class User:
    """A user."""

    id: int
    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Balance:
    """The balance of a user at an instant, `date`."""

    user_id: int
    balance: Decimal
    date: datetime


def instant_of(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _instant_or_none(text: str | None) -> datetime | None:
    return None if text is None else instant_of(text)
