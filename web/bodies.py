"""Bodies: read up to a limit, as JSON with exact numbers, as a model; what nobody read is read away.

The framework's own limit does not hold for chunked bodies behind granian (it cuts them), hence this one.
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
MAX_ARRIVING_BYTES: Final = 1024 * MAX_BODY_BYTES  # of all bodies that are being read, a list counted as one of these
# A body that is refused unread is read away up to this much: who is still sending when the connection is closed
# gets a reset instead of the answer.
MAX_DISCARDED_BYTES: Final = 16 * 1024 * 1024
MAX_REPORTED_ERRORS: Final = 100  # are told of one request
_CHUNK_BYTES: Final = 64 * 1024
_READ_WHOLE: Final = "payments.body_read"  # in the request's environ

Model = TypeVar("Model", bound=BaseModel)


class _MemoryBudget:
    """So much memory the bodies may take that are on their way. Clients that send slowly take what they will send."""

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
# Whoever was refused, without a key perhaps, must not take the places of those whose bodies are wanted.
_discards: Final = threading.BoundedSemaphore(128)


def read_body(http: HttpRequest, max_bytes: int = MAX_BODY_BYTES) -> bytes:
    """Returns the whole body. Raises as `stream_body` does."""
    with stream_body(http, max_bytes) as pieces:
        return b"".join(pieces)


@contextmanager
def stream_body(http: HttpRequest, max_bytes: int) -> Iterator[Iterator[bytes]]:
    """Returns a context with the body's pieces as they come.

    Raises Invalid if the body is too long or ends before its Content-Length; Unavailable if too many bodies are coming.
    """
    length = http.content_length
    if (length or 0) > max_bytes:
        raise _too_large(max_bytes)
    size = min(MAX_BODY_BYTES if length is None else length, MAX_BODY_BYTES)
    if not _memory_budget.take(size):
        raise Unavailable("overloaded", "Too many requests whose body has not come. Nothing was accepted.")
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
    """Reads and drops what is left of the body, up to MAX_DISCARDED_BYTES, unless the client waits for 100 Continue."""
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
    """Checks that the body is not compressed. Raises Invalid if it is: its content would have no limit."""
    codings = http.environ.get("HTTP_CONTENT_ENCODING", "").split(",")
    if any(coding.strip().lower() not in ("", "identity") for coding in codings):
        raise Invalid("unsupported_media_type", "The body must be sent as it is, without a Content-Encoding.")


def read_json(http: HttpRequest, model: type[Model]) -> Model:
    """Returns the request's body as the model.

    Raises Invalid if the content type is another, the body is not JSON, or a field is bad.
    """
    check_encoding(http)
    if http.mimetype != "application/json":
        raise Invalid("unsupported_media_type", "The body must be JSON, with Content-Type: application/json.")
    return validate(parse_json(read_body(http)), model)


def not_json(why: object) -> Invalid:
    """Returns the error for a body that is not JSON."""
    return Invalid("not_json", f"The body is not JSON: {str(why)[:200]}")


def parse_json(body: bytes) -> Any:
    """Returns JSON with exact numbers. Raises Invalid (not_json), also if an object holds a name twice."""
    try:
        return _DECODER.decode(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise not_json(error) from None


def _parse_decimal(digits: str) -> Decimal:
    """No field takes an exponent; one beyond all bounds would be an error of decimal's own."""
    return Decimal("Infinity") if "e" in digits.lower() else Decimal(digits)


def _parse_int(digits: str) -> int | Decimal:
    return int(digits) if len(digits) <= 30 else Decimal(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) != len(pairs):
        raise ValueError("an object holds the same name twice")
    return parsed


def exact_decoder(make_object: Callable[[list[tuple[str, Any]]], Any]) -> JSONDecoder:
    """Returns a decoder of JSON that reads numbers exactly and makes each object by `make_object`."""
    return JSONDecoder(parse_float=_parse_decimal, parse_int=_parse_int, object_pairs_hook=make_object)


_DECODER: Final = exact_decoder(_object)


def validate(value: Any, model: type[Model], unknown: str = "Extra inputs are not permitted") -> Model:
    """Returns the value as the model. `unknown` is the message about a field that the model does not have.

    Raises Invalid (invalid_request) with every bad field by name.
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
    """No more names that mean nothing than are told: each of half a million would become an error, told or not."""
    if not isinstance(value, dict) or len(value) <= MAX_REPORTED_ERRORS:
        return value
    unknown_fields = islice((name for name in value if name not in model.model_fields), MAX_REPORTED_ERRORS)
    return {name: value[name] for name in (*(value.keys() & model.model_fields.keys()), *unknown_fields)}


def _printable(name: str) -> str:
    """A field's name is the client's own: cut, and without what cannot be sent as UTF-8."""
    return name[:200].encode("utf-8", "replace").decode()
