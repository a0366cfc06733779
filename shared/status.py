"""The words of a transaction's life, as they stand in URLs, JSON, columns and logs."""

from enum import StrEnum
from typing import Final

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
