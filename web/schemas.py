"""The pydantic models of bodies: they validate requests, and /openapi.json is derived from them."""

import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from shared.money import AMOUNT_PATTERN, MAX_AMOUNT, MAX_AMOUNT_CHARACTERS, format_amount, parse_amount
from shared.payments.model import Event, EventType, Reason, Status, Type, User
from shared.payments.to_json import transaction_to_json
from shared.timestamps import format_instant, parse_instant

MAX_NAME_CHARACTERS: Final = 200
UID_PATTERN: Final = r"^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$"
# A broken client sends the nil or the all-ones UUID for every payment.
UNUSABLE_UID_PATTERN: Final = "^([0-]*|[Ff-]*)$"
# The white space of str.strip(), spelt out because \s differs between regular expression dialects.
_BLANK: Final = r"\t-\r\u001c-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# A name has a visible character, and no character that Postgres cannot store.
USER_NAME_PATTERN: Final = rf"^[^\u0000]*[^\u0000{_BLANK}][^\u0000]*$"


def parse_uid(text: object) -> UUID:
    """Returns the UUID. Raises ValueError if it is not written with 36 characters, in upper or lower case."""
    if not isinstance(text, str) or not re.fullmatch(UID_PATTERN, text, re.ASCII):
        raise ValueError("must be a UUID, such as 0193e7a5-5bb2-7b3c-8f0a-3f2d6f1f2a10")
    return UUID(text)


def parse_new_uid(text: object) -> UUID:
    """Returns the UUID of a new payment. Raises ValueError if it is not a UUID, or the nil or the all-ones UUID."""
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


# A description, because with `multipleOf: 0.01` a validator that uses binary fractions refuses 19.99.
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
        description="The client makes one per payment. A repeat is recognised by it. Not the nil or the all-ones UUID."
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
                "description": "**`timestamp` is for backdating: do not send it with a live payment.** A live payment "
                "that is repeated after an outage of over a minute would be checked against the past balance. The "
                "value is the instant at which the money moved: ISO 8601, UTC without an offset, at most 60 s in the "
                "future. Within 60 s of acceptance it means now.",
            }
        ),
    ] = None


class UserOut(BaseModel):
    """A user."""

    id: int
    name: str
    created_at: Instant


class UserWithBalanceOut(UserOut):
    """A user with the current balance."""

    balance: Money


class BalanceOut(BaseModel):
    """A user's balance at the instant `date`."""

    user_id: int
    balance: Money
    date: Instant


class TransactionOut(BaseModel):
    """A transaction in its current state."""

    uid: Uid
    user_id: int
    type: Type
    amount: Money
    status: Status
    reason: Reason | None
    timestamp: Instant | None = Field(
        description="If COMPLETED, the instant of its effect. Otherwise the instant as requested, or null."
    )
    accepted_at: Instant
    settled_at: Instant | None
    balance_after: Money | None


class StatementOut(BaseModel):
    """A page of transactions. `next` is the cursor of the next page; null on the last page."""

    items: list[TransactionOut]
    next: str | None


class EventOut(BaseModel):
    """The outcome of a transaction."""

    id: int
    type: EventType
    user_id: int
    user_seq: int = Field(
        description="Numbers the user's events from 1, without a gap. Ignore a number that you have seen."
    )
    balance: Money = Field(description="The user's balance after the transaction.")
    occurred_at: Instant
    transaction: TransactionOut


class EventsOut(BaseModel):
    """A page of events. Pass `next` as `after` to get the next page, also after an empty page."""

    items: list[EventOut]
    next: str


class ResultOut(BaseModel):
    """The state of one transaction of a list."""

    uid: str | None = Field(description="The uid as sent, even if it is not a UUID. Null if it cannot be shown.")
    status: Literal["PENDING", "COMPLETED", "REJECTED", "INVALID"]
    code: str = Field(default="", description="If REJECTED, the reason. If INVALID, the error code of a single PUT.")
    detail: str = Field(default="", description="Explains the code. Present if there is a code.")


class ResultsOut(BaseModel):
    """One result for each transaction, in the order sent."""

    results: list[ResultOut]


class FieldErrorOut(BaseModel):
    field: str
    message: str


class Problem(BaseModel):
    """An error document (RFC 9457). `code` is stable."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[FieldErrorOut] = Field(default=[], description="The invalid fields, if any.")


class Rejection(Problem):
    """A rejected transaction: `code` is the reason."""

    code: Reason
    transaction: TransactionOut


class State(BaseModel):
    status: Literal["alive", "ready"]


def user_to_json(user: User) -> dict[str, Any]:
    """Returns a user as a JSON object, without the balance."""
    return {"id": user.id, "name": user.name, "created_at": format_instant(user.created_at)}


def event_to_json(event: Event) -> dict[str, Any]:
    """Returns an event as a JSON object."""
    return {
        "id": event.id,
        "type": event.type,
        "user_id": event.user_id,
        "user_seq": event.user_seq,
        "balance": format_amount(event.balance),
        "occurred_at": format_instant(event.occurred_at),
        "transaction": transaction_to_json(event.transaction),
    }
