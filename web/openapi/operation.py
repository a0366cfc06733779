"""The decorator `documented`: what /openapi.json needs to know of a view besides its route, docstring and query model.

This module also describes path and header parameters, response headers and the problems that they cause, each once.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import BaseModel

from shared.payments.reads import MAX_USER_ID
from web.http.params import IDEMPOTENCY_KEY_PATTERN, MAX_IDEMPOTENCY_KEY_CHARACTERS
from web.schemas import UID_PATTERN

View = TypeVar("View", bound=Callable[..., Any])
Schema = dict[str, Any]

JSON: Final = "application/json"
TEXT: Final[Schema] = {"type": "string"}
ID: Final[Schema] = {"type": "integer", "minimum": 1, "maximum": MAX_USER_ID}


class Parameter(NamedTuple):
    """A parameter in a path or a header, with the codes of the problems that it can cause."""

    place: str
    schema: Schema
    description: str
    problems: tuple[str, ...] = ()


class ResponseHeader(NamedTuple):
    """A header of a response."""

    schema: Schema
    description: str


class ApiResponse(NamedTuple):
    """A response that is not a problem: its JSON model (None without one), its headers and its other media types."""

    model: type[BaseModel] | None
    description: str
    headers: tuple[str, ...] = ()
    optional_headers: tuple[str, ...] = ()
    other_media: Mapping[str, Schema] = {}


class Operation(NamedTuple):
    """The input and output of an operation. A body is a model in JSON, or one schema for each media type."""

    responses: Mapping[int, ApiResponse]
    body: type[BaseModel] | Mapping[str, Schema] | None
    headers: tuple[str, ...]
    problems: tuple[str, ...]
    common_problems: tuple[str, ...]


PARAMETERS: Final[Mapping[str, Parameter]] = {
    "user_id": Parameter("path", ID, "The user's id.", ("user_not_found",)),
    "uid": Parameter(
        "path", {**TEXT, "format": "uuid", "pattern": UID_PATTERN}, "The transaction's uid.", ("transaction_not_found",)
    ),
    "webhook_id": Parameter("path", ID, "The webhook's id.", ("webhook_not_found",)),
    "X-Request-ID": Parameter(
        "header", TEXT, "The request's id. If its characters are allowed, the response repeats it and logs contain it."
    ),
    "Prefer": Parameter(
        "header", TEXT, "`wait=N`: the server responds when the state is final, or after N seconds (at most 30)."
    ),
    "If-None-Match": Parameter("header", TEXT, "An ETag. The response is 304 while the transaction still has it."),
    "Idempotency-Key": Parameter(
        "header",
        {**TEXT, "minLength": 1, "maxLength": MAX_IDEMPOTENCY_KEY_CHARACTERS, "pattern": IDEMPOTENCY_KEY_PATTERN},
        "A repeat with the same key gets the same response. A key belongs to the API key that sent it.",
        ("key_reused",),
    ),
}
RESPONSE_HEADERS: Final[Mapping[str, ResponseHeader]] = {
    "X-Request-ID": ResponseHeader(TEXT, "The request's id: the one that the caller sent, or a new one."),
    "Location": ResponseHeader(TEXT, "The address of the new resource."),
    "Retry-After": ResponseHeader({"type": "integer", "minimum": 1}, "The seconds to wait before the next request."),
    "WWW-Authenticate": ResponseHeader(TEXT, "The kind of key that is needed."),
    "ETag": ResponseHeader(TEXT, "Changes with the transaction's state."),
    "Preference-Applied": ResponseHeader({**TEXT, "pattern": "^wait=[0-9]+$"}, "The `Prefer` that was applied."),
    "Idempotency-Replayed": ResponseHeader({**TEXT, "const": "true"}, "The request is a repeat."),
    "Content-Disposition": ResponseHeader(TEXT, "The file name of a CSV."),
    "Link": ResponseHeader(TEXT, 'The address of the next page of a CSV, with rel="next".'),
}
BODY_PROBLEMS: Final = ("not_json", "body_too_large", "unsupported_media_type", "overloaded")
COMMON_PROBLEMS: Final = ("invalid_request", "database_unavailable", "internal_error")


def documented(
    responses: Mapping[int, ApiResponse],
    *,
    body: type[BaseModel] | Mapping[str, Schema] | None = None,
    headers: tuple[str, ...] = (),
    problems: tuple[str, ...] = (),
    common_problems: tuple[str, ...] = COMMON_PROBLEMS,
) -> Callable[[View], View]:
    """Returns a decorator that adds the view to /openapi.json. It does not change the view's behaviour.

    `problems` are the codes that follow neither from the body nor from a path or header parameter.
    """

    def describe(view: View) -> View:
        view.operation = Operation(responses, body, headers, problems, common_problems)  # type: ignore[attr-defined]
        return view

    return describe
