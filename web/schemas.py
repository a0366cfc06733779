"""What comes in and goes out, as pydantic models: they validate requests and describe the API."""

import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from shared.instants import format_instant, parse_instant
from shared.model import Event, EventType, Reason, Status, Type, User
from shared.money import AMOUNT_PATTERN, MAX_AMOUNT, MAX_AMOUNT_CHARACTERS, format_amount, parse_amount
from shared.showing import transaction_to_json

MAX_NAME_CHARACTERS: Final = 200
UID_PATTERN: Final = r"^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$"
# The nil and the all-ones UUID are what a broken client sends for every payment.
UNUSABLE_UID_PATTERN: Final = "^([0-]*|[Ff-]*)$"
# White space as str.strip() has it, spelt out: \s means something else in every dialect.
_BLANK: Final = r"\t-\r\u001c-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# A name has something to see, and nothing that Postgres cannot store.
USER_NAME_PATTERN: Final = rf"^[^\u0000]*[^\u0000{_BLANK}][^\u0000]*$"


def parse_uid(text: object) -> UUID:
    """Returns the UUID that is written in its usual form of 36 characters, upper or lower case. Raises ValueError."""
    if not isinstance(text, str) or not re.fullmatch(UID_PATTERN, text, re.ASCII):
        raise ValueError("must be a UUID, such as 0193e7a5-5bb2-7b3c-8f0a-3f2d6f1f2a10")
    return UUID(text)


def parse_new_uid(text: object) -> UUID:
    """Returns the UUID of a payment to accept. Raises ValueError, also for the nil and the all-ones UUID."""
    uid = parse_uid(text)
    if re.fullmatch(UNUSABLE_UID_PATTERN, str(text)):
        raise ValueError("must be a UUID made for this payment, not the nil or the all-ones UUID")
    return uid


def _parse_name(name: object) -> str:
    if not isinstance(name, str) or not name.strip():
        raise ValueError("must be a text that is not empty")
    if len(name) > MAX_NAME_CHARACTERS:
        raise ValueError(f"must have at most {MAX_NAME_CHARACTERS} characters")
    if "\0" in name or any("\ud800" <= character <= "\udfff" for character in name):
        raise ValueError("must not hold NUL or half a surrogate pair")
    return name


def _parse_timestamp(text: object) -> datetime | None:
    return None if text is None else parse_instant(text)


# In words: `multipleOf: 0.01` refuses 19.99 wherever a validator computes with binary fractions.
NUMBER_DESCRIPTION: Final = "Written with at most two digits after the point and without an exponent."
AMOUNT_SCHEMA: dict[str, Any] = {
    "description": "A positive decimal, at most two digits after the point, at most 9999999999.99. Read exactly.",
    "oneOf": [
        {"type": "string", "pattern": AMOUNT_PATTERN, "maxLength": MAX_AMOUNT_CHARACTERS},
        {"type": "number", "minimum": 0.01, "maximum": MAX_AMOUNT / 100, "description": NUMBER_DESCRIPTION},
    ],
    "examples": ["100.00"],
}
Uid = Annotated[UUID, WithJsonSchema({"type": "string", "format": "uuid", "pattern": UID_PATTERN})]
NewUid = Annotated[
    UUID,
    BeforeValidator(parse_new_uid),
    WithJsonSchema(
        {"type": "string", "format": "uuid", "pattern": UID_PATTERN, "not": {"pattern": UNUSABLE_UID_PATTERN}}
    ),
]
Instant = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
Money = Annotated[str, WithJsonSchema({"type": "string", "pattern": r"^[0-9]+\.[0-9]{2}$", "examples": ["100.00"]})]


class NewUser(BaseModel):
    """A user to add."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[
        str,
        BeforeValidator(_parse_name),
        WithJsonSchema(
            {
                "type": "string",
                "minLength": 1,
                "maxLength": MAX_NAME_CHARACTERS,
                "pattern": USER_NAME_PATTERN,
                "examples": ["Ada"],
            }
        ),
    ]


class NewTransaction(BaseModel):
    """A transaction to accept."""

    model_config = ConfigDict(extra="forbid")

    uid: NewUid = Field(
        description="Made by the client, once per payment. A repeat is recognised by it. Not the nil or the all-ones UUID."
    )
    user_id: Annotated[int, Field(strict=True, ge=1, le=2**63 - 1)]
    type: Type
    amount: Annotated[int, BeforeValidator(parse_amount), WithJsonSchema(AMOUNT_SCHEMA)]
    timestamp: Annotated[
        datetime | None,
        BeforeValidator(_parse_timestamp),
        WithJsonSchema(
            {
                "type": ["string", "null"],
                "format": "date-time",
                "description": "**`timestamp` is for backdating: a live payment bears none**, or one that is repeated "
                "through an outage of over a minute is judged by the balance of then. It is when the money moved as the "
                "client sees it: ISO 8601, UTC unless it says otherwise, at most 60 s ahead. Within 60 s of acceptance "
                "it means now.",
            }
        ),
    ] = None


class UserOut(BaseModel):
    """A user."""

    id: int
    name: str
    created_at: Instant


class UserWithBalanceOut(UserOut):
    """A user, with the balance of now."""

    balance: Money


class BalanceOut(BaseModel):
    """The balance at an instant."""

    user_id: int
    balance: Money
    date: Instant


class TransactionOut(BaseModel):
    """A transaction as it stands."""

    uid: Uid
    user_id: int
    type: Type
    amount: Money
    status: Status
    reason: Reason | None
    timestamp: Instant | None = Field(
        description="Effective when COMPLETED; as requested, or null, while PENDING or when REJECTED."
    )
    accepted_at: Instant
    settled_at: Instant | None
    balance_after: Money | None


class StatementOut(BaseModel):
    """A page of transactions; `next` is the cursor of the following page."""

    items: list[TransactionOut]
    next: str | None


class EventOut(BaseModel):
    """What became of a transaction."""

    id: int
    type: EventType
    user_id: int
    user_seq: int = Field(description="Numbers the user's outcomes from 1, without a gap. One seen before is stale.")
    balance: Money = Field(description="The user's, after it.")
    occurred_at: Instant
    transaction: TransactionOut


class EventsOut(BaseModel):
    """A page of events; `next` goes on behind it, also when it is empty."""

    items: list[EventOut]
    next: str


class ResultOut(BaseModel):
    """How one transaction of a list stands."""

    uid: str | None = Field(description="What was sent in its place where it is no UUID; null where that is unknown.")
    status: Literal["PENDING", "COMPLETED", "REJECTED", "INVALID"]
    code: str = Field(default="", description="Where REJECTED, the reason; where INVALID, a single PUT's error code.")
    detail: str = Field(default="", description="Where there is a code.")


class ResultsOut(BaseModel):
    """One result per transaction, in the order sent."""

    results: list[ResultOut]


class FieldErrorOut(BaseModel):
    field: str
    message: str


class Problem(BaseModel):
    """An error, after RFC 9457. `code` is stable."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[FieldErrorOut] = Field(default=[], description="The bad fields, where there are some.")


class Rejection(Problem):
    """A rejected transaction: `code` is the reason."""

    code: Reason
    transaction: TransactionOut


class State(BaseModel):
    status: Literal["alive", "ready"]


def user_to_json(user: User) -> dict[str, Any]:
    """Returns a user as the API shows it, without a balance."""
    return {"id": user.id, "name": user.name, "created_at": format_instant(user.created_at)}


def event_to_json(event: Event) -> dict[str, Any]:
    """Returns an event as the API shows it."""
    return {
        "id": event.id,
        "type": event.type,
        "user_id": event.user_id,
        "user_seq": event.user_seq,
        "balance": format_amount(event.balance),
        "occurred_at": format_instant(event.occurred_at),
        "transaction": transaction_to_json(event.transaction),
    }
