"""The pydantic models of query parameters: they validate requests, and /openapi.json is derived from them.

A view with a parameter `query` gets an instance of the model that annotates it. Every other view refuses all query
parameters.
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

from shared.errors import invalid_field
from shared.events import FEED_CURSOR_PATTERN, FeedPosition, parse_cursor
from shared.history import MAX_USER_ID
from shared.instants import parse_instant
from shared.model import StatementKey, Status, Type
from shared.webhook_model import DeadLetterKey
from web.bodies import validate
from web.requests import STATEMENT_CURSOR_PATTERN, parse_statement_cursor
from web.webhook_schemas import DEAD_LETTER_CURSOR_PATTERN, read_letter_key

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
