"""The pydantic models of webhooks: they validate requests, and /openapi.json is derived from them."""

from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from shared.money import MAX_AMOUNT, MAX_AMOUNT_CHARACTERS, THRESHOLD_PATTERN, parse_threshold
from shared.payments.feed import FEED_CURSOR_PATTERN, parse_cursor
from shared.webhooks.policy import WebhookEventType
from shared.webhooks.target_url import MAX_URL_CHARACTERS, URL_PATTERN
from web.schemas import NUMBER_DESCRIPTION, Instant, Money


def _parse_after(text: object) -> list[int]:
    if not isinstance(text, str):
        raise ValueError("must be a cursor of the events, or an empty text for the first event")
    return list(parse_cursor(text).lanes)


def _parse_url(text: object) -> str:
    if not isinstance(text, str):
        raise ValueError("must be a text")
    return text


def _without_repeats(events: list[WebhookEventType]) -> list[WebhookEventType]:
    return list(dict.fromkeys(events))


THRESHOLD_SCHEMA: Final[dict[str, Any]] = {
    "description": "A decimal, at most two digits after the point, from 0 to 9999999999.99. Read exactly.",
    "oneOf": [
        {"type": "string", "pattern": THRESHOLD_PATTERN, "maxLength": MAX_AMOUNT_CHARACTERS},
        {"type": "number", "minimum": 0, "maximum": MAX_AMOUNT / 100, "description": NUMBER_DESCRIPTION},
    ],
    "default": "0.00",
}


class NewWebhookIn(BaseModel):
    """A webhook to add."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[
        str,
        BeforeValidator(_parse_url),
        WithJsonSchema(
            {
                "type": "string",
                "pattern": URL_PATTERN,
                "maxLength": MAX_URL_CHARACTERS,
                "description": "An http or https URL in ASCII. Its host is on the public internet.",
                "examples": ["https://example.com/payments"],
            }
        ),
    ]
    events: Annotated[
        list[WebhookEventType],
        Field(min_length=1, max_length=2 * len(WebhookEventType)),
        AfterValidator(_without_repeats),
    ]
    threshold: Annotated[int, BeforeValidator(parse_threshold), WithJsonSchema(THRESHOLD_SCHEMA)] = 0


class ReplayIn(BaseModel):
    """The point in the feed from which events are sent again."""

    model_config = ConfigDict(extra="forbid")

    after: Annotated[
        list[int],
        BeforeValidator(_parse_after),
        WithJsonSchema(
            {
                "type": "string",
                "pattern": FEED_CURSOR_PATTERN,
                "description": "A cursor of the events. An empty text means all events.",
            }
        ),
    ]


class WebhookContentOut(BaseModel):
    id: int
    url: str
    events: list[WebhookEventType]
    threshold: Money


class NewWebhookOut(WebhookContentOut):
    """A new webhook. Only this response, and that to a repeat with the same Idempotency-Key, has the secret."""

    secret: str


class WebhookOut(WebhookContentOut):
    """A webhook in its current state."""

    created_at: Instant
    failing_since: Instant | None = Field(description="All attempts since then have failed. Null if the last did not.")
    disabled_at: Instant | None = Field(description="The service disabled it then. A replay enables it again.")
    disabled_reason: str | None


class WebhooksOut(BaseModel):
    items: list[WebhookOut]


class SecretOut(BaseModel):
    """The new secret, which only this response has. For 24 hours requests are signed with the old secret, too."""

    secret: str


class TrialOut(BaseModel):
    """The result of a test event: the receiver's HTTP status, or the error if there was no response."""

    delivered: bool
    status: int | None
    error: str | None


class DeadLetterOut(BaseModel):
    """A delivery that is no longer tried."""

    event_id: int
    type: WebhookEventType
    user_id: int
    user_seq: int
    balance: Money
    attempts: int
    error: str | None
    occurred_at: Instant
    dead_at: Instant


class DeadLettersOut(BaseModel):
    """A page of dead letters, in the order of the events. `next` is the cursor of the next page; null on the last."""

    items: list[DeadLetterOut]
    next: str | None
