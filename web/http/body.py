"""Reads request bodies: up to a limit, as JSON with exact numbers, as a pydantic model. Discards unread bodies.

Flask's own limit does not work for chunked bodies behind granian (it cuts them), hence this module.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from itertools import islice
from json import JSONDecoder
from typing import Any, Final, TypeVar

from flask import Request as HttpRequest
from pydantic import BaseModel, ValidationError

from shared.errors import FieldError, Invalid, Unavailable

MAX_BODY_BYTES: Final = 64 * 1024
MAX_ARRIVING_BYTES: Final = 1024 * MAX_BODY_BYTES  # of all arriving bodies; a list counts as MAX_BODY_BYTES
# A refused body is read and dropped up to this size. If the server closed the connection while the client still sends,
# the client would get a reset instead of the response.
MAX_DISCARDED_BYTES: Final = 16 * 1024 * 1024
MAX_REPORTED_ERRORS: Final = 100  # per request
_CHUNK_BYTES: Final = 64 * 1024
_READ_WHOLE: Final = "payments.body_read"  # in the request's environ

Model = TypeVar("Model", bound=BaseModel)


class _MemoryBudget:
    """The memory for all arriving bodies. A body takes its full size at its start, even if its client sends slowly."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Takes memory and returns whether there was enough."""
        with self._lock:
            has_room = size <= self._free
            self._free -= size if has_room else 0
            return has_room

    def give_back(self, size: int) -> None:
        """Gives memory back."""
        with self._lock:
            self._free += size


_memory_budget: Final = _MemoryBudget(MAX_ARRIVING_BYTES)
# A limit of its own: refused clients, some of them without a key, must not use the budget of accepted bodies.
_discards: Final = threading.BoundedSemaphore(128)


def read_body(http: HttpRequest, max_bytes: int = MAX_BODY_BYTES) -> bytes:
    """Returns the whole body. Raises the errors of `stream_body`."""
    with stream_body(http, max_bytes) as pieces:
        return b"".join(pieces)


@contextmanager
def stream_body(http: HttpRequest, max_bytes: int) -> Iterator[Iterator[bytes]]:
    """Returns a context manager that yields the body's pieces as they arrive.

    Raises Invalid if the body is too long or ends before its Content-Length. Raises Unavailable if too many bodies are
    arriving.
    """
    length = http.content_length
    if (length or 0) > max_bytes:
        raise _too_large(max_bytes)
    size = min(MAX_BODY_BYTES if length is None else length, MAX_BODY_BYTES)
    if not _memory_budget.take(size):
        raise Unavailable("overloaded", "Too many request bodies are arriving. Nothing was accepted.")
    try:
        yield _pieces(http, max_bytes)
    finally:
        _memory_budget.give_back(size)


def _pieces(http: HttpRequest, max_bytes: int) -> Iterator[bytes]:
    stream, length = http.environ["wsgi.input"], http.content_length
    read = 0
    while read != length and (piece := stream.read(min(max_bytes + 1 - read, _CHUNK_BYTES))):
        read += len(piece)
        if read > max_bytes:
            raise _too_large(max_bytes)
        yield piece
    if read < (length or 0):
        raise Invalid("not_json", "The body ends before its Content-Length.")
    http.environ[_READ_WHOLE] = True


def _too_large(max_bytes: int) -> Invalid:
    return Invalid("body_too_large", f"The body must have at most {max_bytes} bytes.")


def discard_body(http: HttpRequest) -> None:
    """Reads and drops the rest of the body, up to MAX_DISCARDED_BYTES, unless the client waits for 100 Continue."""
    if _READ_WHOLE in http.environ:
        return
    length, headers = http.content_length or 0, http.environ
    has_body = length or "HTTP_TRANSFER_ENCODING" in headers
    if not has_body or "HTTP_EXPECT" in headers or length > MAX_DISCARDED_BYTES:
        return
    if _discards.acquire(blocking=False):
        try:
            remaining = MAX_DISCARDED_BYTES
            while remaining > 0 and (piece := http.environ["wsgi.input"].read(_CHUNK_BYTES)):
                remaining -= len(piece)
        finally:
            _discards.release()


def check_encoding(http: HttpRequest) -> None:
    """Checks that the body has no Content-Encoding. Raises Invalid if it has one: its content has no size limit."""
    codings = http.environ.get("HTTP_CONTENT_ENCODING", "").split(",")
    if any(coding.strip().lower() not in ("", "identity") for coding in codings):
        raise Invalid("unsupported_media_type", "The body must be sent without a Content-Encoding.")


def read_json(http: HttpRequest, model: type[Model]) -> Model:
    """Returns the request's body as an instance of the model.

    Raises Invalid if the content type is wrong, the body is not JSON, or a field is invalid.
    """
    check_encoding(http)
    if http.mimetype != "application/json":
        raise Invalid("unsupported_media_type", "The body must be JSON, with Content-Type: application/json.")
    return validate(parse_json(read_body(http)), model)


def not_json(reason: object) -> Invalid:
    """Returns the error for a body that is not JSON."""
    return Invalid("not_json", f"The body is not JSON: {str(reason)[:200]}")


def parse_json(body: bytes) -> Any:
    """Returns the parsed JSON, with exact numbers. Raises Invalid if it is not JSON or an object has a name twice."""
    try:
        return _DECODER.decode(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise not_json(error) from None


def _parse_decimal(digits: str) -> Decimal:
    """Returns the exact number, or Infinity if it has an exponent: no field allows one, and a huge one is an error."""
    return Decimal("Infinity") if "e" in digits.lower() else Decimal(digits)


def _parse_int(digits: str) -> int | Decimal:
    return int(digits) if len(digits) <= 30 else Decimal(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) != len(pairs):
        raise ValueError("an object has the same name twice")
    return parsed


def exact_decoder(make_object: Callable[[list[tuple[str, Any]]], Any]) -> JSONDecoder:
    """Returns a JSON decoder that reads numbers exactly and builds each object with `make_object`."""
    return JSONDecoder(parse_float=_parse_decimal, parse_int=_parse_int, object_pairs_hook=make_object)


_DECODER: Final = exact_decoder(_object)


def validate(value: Any, model: type[Model], unknown: str = "Extra inputs are not permitted") -> Model:
    """Returns the value as an instance of the model. `unknown` is the message for an unknown field.

    Raises Invalid (invalid_request) with each invalid field and its message, up to MAX_REPORTED_ERRORS.
    """
    try:
        return model.model_validate(_limit_unknown_fields(value, model))
    except ValidationError as error:
        fields = [
            FieldError(
                _printable(".".join(map(str, e["loc"]))),
                unknown if e["type"] == "extra_forbidden" else e["msg"].removeprefix("Value error, "),
            )
            for e in error.errors(include_url=False, include_input=False)[:MAX_REPORTED_ERRORS]
        ]
        detail = "; ".join(f"{f.field}: {f.message}" if f.field else f.message for f in fields)
        raise Invalid("invalid_request", detail[:2000], fields) from None


def _limit_unknown_fields(value: Any, model: type[BaseModel]) -> Any:
    """Returns the value with at most MAX_REPORTED_ERRORS unknown fields, because pydantic builds an error for each."""
    if not isinstance(value, dict) or len(value) <= MAX_REPORTED_ERRORS:
        return value
    unknown_fields = islice((name for name in value if name not in model.model_fields), MAX_REPORTED_ERRORS)
    return {name: value[name] for name in (*(value.keys() & model.model_fields.keys()), *unknown_fields)}


def _printable(name: str) -> str:
    """Returns a field's name, which the client chose: cut, and without characters that UTF-8 cannot encode."""
    return name[:200].encode("utf-8", "replace").decode()
