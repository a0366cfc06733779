"""Query parameters (one pydantic model per view), ids in paths, and request headers.

Requests are read by the models, and the API is described by them. A view that has a parameter `query` is called with the
model that annotates it. Every other view refuses all query parameters.
"""

import re
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from functools import cache, partial, wraps
from typing import Annotated, Any, Final, NamedTuple, TypeVar, cast, get_type_hints

from flask import Request as HttpRequest
from flask import g
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from shared.errors import NotFound, invalid_field
from shared.payments.feed import FEED_CURSOR_PATTERN, FeedPosition, parse_cursor
from shared.payments.model import StatementKey, Status, Type
from shared.payments.reads import MAX_USER_ID
from shared.payments.users import OwnedKey
from shared.timestamps import parse_instant
from shared.webhooks.model import DeadLetterKey
from web.http.body import validate
from web.http.cursors import (
    DEAD_LETTER_CURSOR_PATTERN,
    STATEMENT_CURSOR_PATTERN,
    parse_statement_cursor,
    read_letter_key,
)

MAX_LONG_POLL_SECONDS: Final = 30

DEFAULT_PAGE_ITEMS: Final = 100
MAX_PAGE_ITEMS: Final = 1000
View = TypeVar("View", bound=Callable[..., Any])
Choice = TypeVar("Choice", bound=StrEnum)


class Component(NamedTuple):
    """The component name of a parameter in /openapi.json, for a parameter whose own name is used twice."""

    name: str


def _parse_number(text: str, max_value: int, max_digits: int) -> int:
    if not re.fullmatch(rf"[0-9]{{1,{max_digits}}}", text, re.ASCII) or not 1 <= int(text) <= max_value:
        raise ValueError(f"must be a whole number from 1 to {max_value}")
    return int(text)


def _parse_choice(text: str, choices: type[Choice]) -> Choice:
    try:
        return choices(text)
    except ValueError:
        raise ValueError(f"must be one of {', '.join(choices)}") from None


Limit = Annotated[
    int,
    PlainValidator(partial(_parse_number, max_value=MAX_PAGE_ITEMS, max_digits=9)),
    Field(description="The maximum number of items on the page."),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_PAGE_ITEMS}),
]
UserIdFilter = Annotated[
    int | None,
    PlainValidator(partial(_parse_number, max_value=MAX_USER_ID, max_digits=19)),
    Field(description="Return the events of this user only."),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_USER_ID}),
    Component("user_id.filter"),
]
InstantFilter = Annotated[
    datetime | None,
    PlainValidator(parse_instant),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
StatusFilter = Annotated[
    Status | None,
    PlainValidator(partial(_parse_choice, choices=Status)),
    Field(description="Return transactions in this state only."),
    WithJsonSchema({"type": "string", "enum": [*Status]}),
]
TypeFilter = Annotated[
    Type | None,
    PlainValidator(partial(_parse_choice, choices=Type)),
    Field(description="Return transactions of this type only."),
    WithJsonSchema({"type": "string", "enum": [*Type]}),
]
StatementCursor = Annotated[
    StatementKey | None,
    PlainValidator(parse_statement_cursor),
    Field(description="`next` of the previous page."),
    WithJsonSchema({"type": "string", "pattern": STATEMENT_CURSOR_PATTERN}),
]
FeedCursor = Annotated[
    FeedPosition,
    PlainValidator(parse_cursor),
    Field(description="`next` of the previous page. Without it the feed starts at its beginning."),
    WithJsonSchema({"type": "string", "pattern": FEED_CURSOR_PATTERN}),
]
DeadLetterCursor = Annotated[
    DeadLetterKey | None,
    PlainValidator(read_letter_key),
    Field(description="`next` of the previous page."),
    WithJsonSchema({"type": "string", "pattern": DEAD_LETTER_CURSOR_PATTERN}),
    Component("letter_cursor"),
]


class Query(BaseModel):
    """The base of all models here, without parameters. An unknown parameter is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BalanceQuery(Query):
    """The query parameters of a balance."""

    date: InstantFilter = Field(None, description="The instant, in ISO 8601. An instant in the future means now.")


class StatementQuery(Query):
    """The query parameters of a statement: page and filters."""

    limit: Limit = DEFAULT_PAGE_ITEMS
    cursor: StatementCursor = None
    status: StatusFilter = None
    type: TypeFilter = None
    since: InstantFilter = Field(None, alias="from", description="Return transactions accepted at or after this.")
    until: InstantFilter = Field(None, alias="to", description="Return transactions accepted before this.")


class EventsQuery(Query):
    """The query parameters of the feed."""

    after: FeedCursor = Field(default_factory=FeedPosition)
    limit: Limit = DEFAULT_PAGE_ITEMS
    user_id: UserIdFilter = None


class DeadLettersQuery(Query):
    """The query parameters of a webhook's dead letters."""

    limit: Limit = DEFAULT_PAGE_ITEMS
    cursor: DeadLetterCursor = None


def read_query(http: HttpRequest, model: type[Query]) -> Query:
    """Returns the request's query parameters as the model.

    Raises Invalid if a parameter is given twice, cannot be read or is unknown. A misspelt filter must not be ignored.
    """
    known = {field.alias or name for name, field in model.model_fields.items()}
    texts = dict(http.args.lists())
    for name, values in texts.items():
        if name in known and len(values) > 1:
            raise invalid_field(name, "must be given once")
    return validate(
        {name: text for name, (text, *_) in texts.items()}, model, "is not a query parameter of this address"
    )


@cache
def query_model(view: Callable[..., Any]) -> type[Query]:
    """Returns the model that annotates the view's parameter `query`; Query for a view without that parameter."""
    return cast(type[Query], get_type_hints(view).get("query", Query))


def with_query(view: View) -> View:
    """Returns the view so that it gets the parameters that `read_query` has read, if it has a parameter `query`."""
    model = query_model(view)
    if model is Query:
        return view
    defaults = model()

    @wraps(view)
    def call_with_query(**arguments: Any) -> Any:
        return view(query=g.get("query", defaults), **arguments)

    return cast(View, call_with_query)


MAX_IDEMPOTENCY_KEY_CHARACTERS: Final = 200
IDEMPOTENCY_KEY_PATTERN: Final = "^[!-~]([ -~]*[!-~])?$"
# A comma within quotes does not separate two preferences.
_PREFERENCES = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*"?)+')
_WAIT = re.compile(
    r'\s*wait\s*=\s*(?:(?P<token>[0-9]+)|"(?P<quoted>[0-9]+)")\s*(?:;.*)?', re.ASCII | re.IGNORECASE | re.DOTALL
)


def read_idempotency_key(http: HttpRequest) -> OwnedKey | None:
    """Returns the Idempotency-Key with the id of the caller's API key; None without the header.

    Raises Invalid if the header is empty, too long or not printable ASCII.
    """
    text = http.environ.get("HTTP_IDEMPOTENCY_KEY")
    if text is None:
        return None
    key = _of_one_line(text)
    if not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY_CHARACTERS or not re.fullmatch(IDEMPOTENCY_KEY_PATTERN, key):
        raise invalid_field(
            "Idempotency-Key", f"must have 1 to {MAX_IDEMPOTENCY_KEY_CHARACTERS} characters, ASCII and printable"
        )
    return OwnedKey(g.key_id, key)


def _of_one_line(text: str) -> str:
    """Returns a header's value once if the server has joined several equal lines with commas."""
    pieces = text.split(",")
    parts = [piece.strip() for piece in pieces]
    for length in range(1, len(parts) // 2 + 1):
        line = ",".join(pieces[:length]).strip()
        if line and len(parts) % length == 0 and parts == parts[:length] * (len(parts) // length):
            return line
    return text


def read_id(text: str, not_found: Callable[[object], NotFound]) -> int:
    """Returns the id in a path as a number. Raises NotFound if the text is not an id."""
    if not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII):
        raise not_found(text[:200])
    return int(text)


def preferred_wait(http: HttpRequest) -> int | None:
    """Returns N of `Prefer: wait=N` (RFC 7240), in seconds, at most MAX_LONG_POLL_SECONDS; None without it.

    As the RFC says, a preference that cannot be read is ignored, and the first of several counts.
    """
    for preference in _PREFERENCES.findall(http.environ.get("HTTP_PREFER", "")):
        match = _WAIT.fullmatch(preference)
        if match:
            digits = match["token"] or match["quoted"]
            return min(int(digits), MAX_LONG_POLL_SECONDS) if len(digits) < 10 else MAX_LONG_POLL_SECONDS
    return None
