"""The table of operations: every path, method, parameter, and every answer that can occur. No IO, no routes.

web/openapi makes the published document of it and of the models. The codes that an operation may refuse with
name its error answers; a test compares the table with the routes, a property-based tester with the rest.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from pydantic import BaseModel

from shared.events import CURSOR_PATTERN as FEED_CURSOR_PATTERN
from shared.history import MOST_USER_ID
from shared.status import Status, Type
from web import schemas
from web.lists import MOST_ITEMS, NDJSON
from web.requests import CURSOR_PATTERN, KEY_PATTERN, MAX_KEY_CHARACTERS
from web.users import DEFAULT_PAGE, LONGEST_PAGE
from web.webhook_schemas import LETTER_KEY_PATTERN

Schema = dict[str, Any]
JSON: Final = "application/json"
TEXT: Final[Schema] = {"type": "string"}
INSTANT: Final[Schema] = {"type": "string", "format": "date-time"}


class Answer(NamedTuple):
    """One that is no error. A header ending in "?" may be missing."""

    model: type[BaseModel] | None
    says: str
    headers: str = ""
    others: Mapping[str, Schema] = {}  # media types beside JSON


class Operation(NamedTuple):
    """A method of a path; parameters and codes by name, separated by spaces."""

    name: str
    method: str
    path: str
    summary: str
    answers: Mapping[int, Answer]
    parameters: str = ""
    codes: str = ""
    body: type[BaseModel] | None = None
    bodies: Mapping[str, Schema] = {}  # where it is no model, by media type


PARAMETERS: Final[Mapping[str, tuple[str, Schema, str]]] = {
    "user_id": ("path", {"type": "integer", "minimum": 1, "maximum": MOST_USER_ID}, "The user."),
    "user_id.filter": ("query", {"type": "integer", "minimum": 1, "maximum": MOST_USER_ID}, "Only this user's."),
    "uid": ("path", {**TEXT, "format": "uuid", "pattern": schemas.UID_PATTERN}, "The transaction."),
    "webhook_id": ("path", {"type": "integer", "minimum": 1, "maximum": MOST_USER_ID}, "The webhook."),
    "date": ("query", INSTANT, "The instant to answer for, in ISO 8601; one in the future means now."),
    "limit": (
        "query",
        {"type": "integer", "minimum": 1, "maximum": LONGEST_PAGE, "default": DEFAULT_PAGE},
        "At most so many.",
    ),
    "cursor": ("query", {**TEXT, "pattern": CURSOR_PATTERN}, "`next` of the page before."),
    "after": ("query", {**TEXT, "pattern": FEED_CURSOR_PATTERN}, "`next` of the page before; none: the beginning."),
    "letter_cursor": ("query", {**TEXT, "pattern": LETTER_KEY_PATTERN}, "`next` of the page before."),
    "status": ("query", {**TEXT, "enum": [*Status]}, "Only those."),
    "type": ("query", {**TEXT, "enum": [*Type]}, "Only those."),
    "from": ("query", INSTANT, "Accepted at or after this."),
    "to": ("query", INSTANT, "Accepted before this."),
    "X-Request-ID": ("header", TEXT, "Comes back, if it is a sane one, and stands in the logs."),
    "Prefer": ("header", TEXT, "`wait=N`: answer when the state is final, at the latest after N (up to 30) seconds."),
    "If-None-Match": ("header", TEXT, "An ETag: 304 while it is still that."),
    "Idempotency-Key": (
        "header",
        {**TEXT, "minLength": 1, "maxLength": MAX_KEY_CHARACTERS, "pattern": KEY_PATTERN},
        "A repeat with the same key answers the same. Keys belong to the API key that sent them.",
    ),
}
HEADERS: Final[Mapping[str, tuple[Schema, str]]] = {
    "X-Request-ID": (TEXT, "The request's id: the caller's, or a new one."),
    "Location": (TEXT, "Where it is found."),
    "Retry-After": ({"type": "integer", "minimum": 1}, "Seconds."),
    "WWW-Authenticate": (TEXT, "What kind of key is asked for."),
    "ETag": (TEXT, "Changes with the transaction's state."),
    "Preference-Applied": ({**TEXT, "pattern": "^wait=[0-9]+$"}, "The waiting that was honoured."),
    "Idempotency-Replayed": ({"type": "string", "const": "true"}, "This is a repeat."),
    "Content-Disposition": (TEXT, "The file name of a CSV."),
    "Link": (TEXT, 'The next page of a CSV, as rel="next".'),
}

_FOUND = Answer(schemas.TransactionOut, "The transaction, whatever its state", "ETag Preference-Applied?")
_NOT_MODIFIED = Answer(None, "It is still what If-None-Match names", "ETag Preference-Applied?")
_PLAIN = Answer(None, "Prometheus text", others={"text/plain": TEXT})
_DOCUMENT = Answer(None, "OpenAPI 3.1", others={JSON: {}})
_STATEMENT = (
    "A page as JSON. As CSV a page where there is a `limit`, and otherwise all rows, in a stream: one that could not be "
    "sent whole ends in a quoted cell that is not closed"
)
_TOLD = "Preference-Applied? Idempotency-Replayed?"
# Whatever an item is, it is judged alone: none makes the list invalid. How many there may be is told in words, because
# more are refused with 413, and a broken schema means 422 to every reader of the document.
_LIST: Final[Schema] = {
    "type": "array",
    "items": {"anyOf": [{"$ref": f"#/components/schemas/{schemas.NewTransaction.__name__}"}, {}]},
    "description": f"Up to {MOST_ITEMS} transactions, each judged alone.",
}
_LINES: Final[Schema] = {
    **TEXT,
    "description": f"NDJSON: a transaction per line, up to {MOST_ITEMS}, each judged alone.",
}
READ: Final = "invalid_request database_unavailable internal_error"
WRITE: Final = "not_json body_too_large unsupported_media_type overloaded " + READ

OPERATIONS: Final = (
    Operation(
        *("post_user", "post", "/api/user/", "Add a user"),
        {201: Answer(schemas.UserOut, "The user", "Location Idempotency-Replayed?")},
        parameters="Idempotency-Key",
        codes=f"key_reused {WRITE}",
        body=schemas.NewUser,
    ),
    Operation(
        *("get_user", "get", "/api/user/{user_id}/", "A user, with the balance of now"),
        {200: Answer(schemas.UserWithBalanceOut, "The user")},
        parameters="user_id",
        codes=f"user_not_found {READ}",
    ),
    Operation(
        *("get_balance", "get", "/api/user/{user_id}/balance/", "The balance, now or at an instant"),
        {200: Answer(schemas.BalanceOut, "The balance")},
        parameters="user_id date",
        codes=f"user_not_found {READ}",
    ),
    Operation(
        *("get_statement", "get", "/api/user/{user_id}/transactions/"),
        "The statement, newest accepted first, in pages",
        {200: Answer(schemas.StatementOut, _STATEMENT, "Link? Content-Disposition?", {"text/csv": TEXT})},
        parameters="user_id limit cursor status type from to",
        codes=f"user_not_found {READ}",
    ),
    Operation(
        *("put_transaction", "put", "/api/transaction/"),
        "Send a transaction; the status code tells its state, whether it is new or a repeat",
        {
            200: Answer(schemas.TransactionOut, "COMPLETED", f"Location {_TOLD}"),
            202: Answer(schemas.TransactionOut, "PENDING", f"Location Retry-After {_TOLD}"),
            409: Answer(schemas.Rejection, "REJECTED", _TOLD),
        },
        parameters="Prefer",
        codes=f"user_not_found uid_reused backlog_full {WRITE}",
        body=schemas.NewTransaction,
    ),
    Operation(
        *("put_transactions", "put", "/api/transactions/"),
        "Send a list of transactions: each is judged alone, all that are good are accepted in one commit",
        {202: Answer(schemas.ResultsOut, "How each stands, in the order sent")},
        codes=f"backlog_full {WRITE}",
        bodies={JSON: _LIST, NDJSON: _LINES},
    ),
    Operation(
        *("get_transaction", "get", "/api/transaction/{uid}", "Look a transaction up"),
        {200: _FOUND, 304: _NOT_MODIFIED},
        parameters="uid Prefer If-None-Match",
        codes=f"transaction_not_found {READ}",
    ),
    Operation(
        *("look_up_transaction", "post", "/api/transaction/{uid}", "The same by POST"),
        {200: _FOUND},
        parameters="uid Prefer",
        codes=f"transaction_not_found {READ}",
    ),
    Operation(
        *("get_events", "get", "/api/events/"),
        "What became of every transaction: at least once, in order per user, none ever skipped",
        {200: Answer(schemas.EventsOut, "A page; an empty one is the end so far, and its `next` goes on from there")},
        parameters="after limit user_id.filter",
        codes=f"user_not_found cursor_ahead {READ}",
    ),
    Operation(
        *("get_liveness", "get", "/livez", "Is the process alive"),
        {200: Answer(schemas.State, "It is")},
        codes="invalid_request",
    ),
    Operation(
        *("get_readiness", "get", "/readyz", "Can it serve: the database answers and is migrated"),
        {200: Answer(schemas.State, "It can")},
        codes=f"not_ready {READ}",
    ),
    Operation(
        "get_metrics",
        "get",
        "/metrics",
        "The numbers, for Prometheus",
        {200: _PLAIN},
        codes="invalid_request internal_error",
    ),
    Operation("get_document", "get", "/openapi.json", "This document", {200: _DOCUMENT}, codes="invalid_request"),
)
