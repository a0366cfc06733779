"""Parses a list, a JSON array or NDJSON, item by item, so that the parsed list is never in memory as a whole.

An item is parsed exactly as the body of a single request. A broken item yields an error and does not affect the others.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from json import JSONDecodeError
from typing import Any, Final, TypeVar

from flask import Request as HttpRequest

from shared.errors import FieldError, Invalid
from web.http.body import check_encoding, exact_decoder, not_json, parse_json, read_body, stream_body

NDJSON: Final = "application/x-ndjson"
MAX_LIST_ITEMS: Final = 10_000
MAX_LIST_BYTES: Final = 4 * 1024 * 1024
NOT_AN_ARRAY: Final = "Input should be an array of transactions"
MAX_LINE_BYTES: Final = 64 * 1024  # the limit of a single request

Item = TypeVar("Item")

_blank = re.compile(r"[ \t\n\r]*")
# A body of brackets alone is thirty times as large when parsed. One body is parsed at a time; two would not be faster.
_parsing = threading.Lock()


def read_list(http: HttpRequest, parse_item: Callable[[Any], Item]) -> list[Item]:
    """Returns the result of `parse_item` for each item. It gets the parsed value, or the Invalid of a broken item.

    Raises Invalid if the content type is wrong, the list is too long or it is not an array. Raises Unavailable if too
    many bodies are arriving.
    """
    check_encoding(http)
    if http.mimetype == NDJSON:
        # granian does not distinguish a cut chunked body from a complete one. Then only the last line is broken. The
        # complete lines were sent on purpose, so they are accepted, although the client does not get the response.
        with stream_body(http, MAX_LIST_BYTES) as pieces:
            return [parse_item(item) for item in _at_most(_items_of_lines(pieces))]
    if http.mimetype == "application/json":
        body = read_body(http, MAX_LIST_BYTES)
        with _parsing:
            return [parse_item(item) for item in _at_most(_items_of_array(body))]
    raise Invalid(
        "unsupported_media_type",
        f"The body must be JSON, with Content-Type: application/json, or NDJSON, with Content-Type: {NDJSON}.",
    )


def _at_most(items: Iterable[Any]) -> Iterator[Any]:
    for position, item in enumerate(items):
        if position >= MAX_LIST_ITEMS:
            raise Invalid("body_too_large", f"A list must have at most {MAX_LIST_ITEMS} items.")
        yield item


def _items_of_lines(pieces: Iterable[bytes]) -> Iterator[Any]:
    for line in _lines(pieces):
        try:
            if len(line) > MAX_LINE_BYTES:
                raise Invalid("body_too_large", f"A line must have at most {MAX_LINE_BYTES} bytes.")
            item = parse_json(line)
        except Invalid as error:
            item = error
        yield item


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Returns the lines that are not blank. A too long line is cut to a length that is still recognised as too long."""
    partial = b""
    for piece in pieces:
        *whole, rest = piece.split(b"\n")
        for line in whole:
            if partial or line:
                if not _is_blank(complete := partial + line):
                    yield complete
                partial = b""
        partial = (partial + rest)[: MAX_LINE_BYTES + 1]
    if not _is_blank(partial):
        yield partial


def _is_blank(line: bytes) -> bool:
    """Returns whether the line is blank. A cut line is not, because its rest is unknown."""
    return len(line) <= MAX_LINE_BYTES and not line.strip()


def _items_of_array(body: bytes) -> Iterator[Any]:
    """Returns the items of a JSON array one by one, so that a duplicate name in an object affects only that item."""
    duplicates: list[str] = []

    def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed = dict(pairs)
        if len(parsed) != len(pairs):
            duplicates.append("an object has the same name twice")
        return parsed

    decoder = exact_decoder(make_object)
    try:
        text = body.decode("utf-8")
        at = _skip(text, 0)
        if text[at : at + 1] != "[":
            parse_json(body)
            raise Invalid("invalid_request", NOT_AN_ARRAY, [FieldError("", NOT_AN_ARRAY)])
        at = _skip(text, at + 1)
        has_more = text[at : at + 1] != "]"
        at = at if has_more else _skip(text, at + 1)
        while has_more:
            item, at = decoder.raw_decode(text, at)
            yield not_json(duplicates[0]) if duplicates else item
            duplicates.clear()
            at = _skip(text, at)
            has_more = text[at : at + 1] == ","
            if not has_more and text[at : at + 1] != "]":
                raise JSONDecodeError("Expecting ',' delimiter", text, at)
            at = _skip(text, at + 1)
        if at < len(text):
            raise JSONDecodeError("Extra data", text, at)
    except (ValueError, RecursionError) as error:
        raise not_json(error) from None


def _skip(text: str, at: int) -> int:
    match = _blank.match(text, at)
    return match.end() if match else at
