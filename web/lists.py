"""The items of a list, a JSON array or NDJSON, handed on one by one: what was read of the body is not kept.

Each is read exactly as the body of a single request is. One that is broken comes as the error, among the others.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from json import JSONDecodeError
from typing import Any, Final, TypeVar

from flask import Request as HttpRequest

from shared.errors import FieldError, Invalid
from web.bodies import check_encoding, exact_decoder, not_json, parse_json, read_body, stream_body

NDJSON: Final = "application/x-ndjson"
MAX_LIST_ITEMS: Final = 10_000
MAX_LIST_BYTES: Final = 4 * 1024 * 1024
NOT_AN_ARRAY: Final = "Input should be an array of transactions"
MAX_LINE_BYTES: Final = 64 * 1024  # as much as a single request may have

Item = TypeVar("Item")

_blank = re.compile(r"[ \t\n\r]*")
# Parsed, a body of nothing but brackets is thirty times as large. One at a time: the interpreter parses no faster.
_parsing = threading.Lock()


def read_list(http: HttpRequest, parse_item: Callable[[Any], Item]) -> list[Item]:
    """Returns what `parse_item` makes of each item: of a parsed value, or of the Invalid of an item that is broken.

    Raises Invalid if the content type is another, the list is too long or it is no array; Unavailable if too many bodies
    are coming.
    """
    check_encoding(http)
    if http.mimetype == NDJSON:
        # The server does not tell a chunked body that was cut from a whole one. Its last line is broken then, and
        # the answer reaches nobody; the lines before it were asked for.
        with stream_body(http, MAX_LIST_BYTES) as pieces:
            return [parse_item(item) for item in _at_most(_items_of_lines(pieces))]
    if http.mimetype == "application/json":
        body = read_body(http, MAX_LIST_BYTES)
        with _parsing:
            return [parse_item(item) for item in _at_most(_items_of_array(body))]
    raise Invalid(
        "unsupported_media_type",
        f"The body must be JSON (application/json) or lines of JSON ({NDJSON}): see Content-Type.",
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
    """Those that are not blank. One that is too long is cut, just so that it can be told to be."""
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
    """Not if it is too long: of a line that was cut, only the beginning is known to be blank."""
    return len(line) <= MAX_LINE_BYTES and not line.strip()


def _items_of_array(body: bytes) -> Iterator[Any]:
    """Item by item, so that a name that one object holds twice spoils that item alone."""
    duplicates: list[str] = []

    def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed = dict(pairs)
        if len(parsed) != len(pairs):
            duplicates.append("an object holds the same name twice")
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
