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
from web.bodies import arriving, check_encoding, exact_decoder, not_json, parse_json, read_body

NDJSON: Final = "application/x-ndjson"
MOST_ITEMS: Final = 10_000
MOST_BYTES: Final = 4 * 1024 * 1024
NO_ARRAY: Final = "Input should be an array of transactions"
MOST_LINE_BYTES: Final = 64 * 1024  # as much as a single request may have

Judged = TypeVar("Judged")

_blank = re.compile(r"[ \t\n\r]*")
# Parsed, a body of nothing but brackets is thirty times as large. One at a time: the interpreter parses no faster.
_parsing = threading.Lock()


def read_list(http: HttpRequest, judge: Callable[[Any], Judged]) -> list[Judged]:
    """Returns what `judge` makes of each item: of a parsed value, or of the Invalid of an item that is broken.

    Raises Invalid if the content type is another, the list is too long or it is no array; Unavailable if too many bodies
    are coming.
    """
    check_encoding(http)
    if http.mimetype == NDJSON:
        # The server does not tell a chunked body that was cut from a whole one. Its last line is broken then, and
        # the answer reaches nobody; the lines before it were asked for.
        with arriving(http, MOST_BYTES) as pieces:
            return [judge(item) for item in _at_most(_items_of_lines(pieces))]
    if http.mimetype == "application/json":
        body = read_body(http, MOST_BYTES)
        with _parsing:
            return [judge(item) for item in _at_most(_items_of_array(body))]
    raise Invalid(
        "unsupported_media_type",
        f"The body must be JSON (application/json) or lines of JSON ({NDJSON}): see Content-Type.",
    )


def _at_most(items: Iterable[Any]) -> Iterator[Any]:
    for position, item in enumerate(items):
        if position >= MOST_ITEMS:
            raise Invalid("body_too_large", f"A list must have at most {MOST_ITEMS} items.")
        yield item


def _items_of_lines(pieces: Iterable[bytes]) -> Iterator[Any]:
    for line in _lines(pieces):
        try:
            if len(line) > MOST_LINE_BYTES:
                raise Invalid("body_too_large", f"A line must have at most {MOST_LINE_BYTES} bytes.")
            item = parse_json(line)
        except Invalid as error:
            item = error
        yield item


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Those that are not blank. One that is too long is cut, just so that it can be told to be."""
    kept = b""
    for piece in pieces:
        *whole, rest = piece.split(b"\n")
        for line in whole:
            if kept or line:
                if not _is_blank(ended := kept + line):
                    yield ended
                kept = b""
        kept = (kept + rest)[: MOST_LINE_BYTES + 1]
    if not _is_blank(kept):
        yield kept


def _is_blank(line: bytes) -> bool:
    """Not if it is too long: of a line that was cut, only the beginning is known to be blank."""
    return len(line) <= MOST_LINE_BYTES and not line.strip()


def _items_of_array(body: bytes) -> Iterator[Any]:
    """Item by item, so that a name that one object holds twice spoils that item alone."""
    twice: list[str] = []

    def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            twice.append("an object holds the same name twice")
        return made

    decoder = exact_decoder(make_object)
    try:
        text = body.decode("utf-8")
        at = _skip(text, 0)
        if text[at : at + 1] != "[":
            parse_json(body)
            raise Invalid("invalid_request", NO_ARRAY, [FieldError("", NO_ARRAY)])
        at = _skip(text, at + 1)
        more = text[at : at + 1] != "]"
        at = at if more else _skip(text, at + 1)
        while more:
            item, at = decoder.raw_decode(text, at)
            yield not_json(twice[0]) if twice else item
            twice.clear()
            at = _skip(text, at)
            more = text[at : at + 1] == ","
            if not more and text[at : at + 1] != "]":
                raise JSONDecodeError("Expecting ',' delimiter", text, at)
            at = _skip(text, at + 1)
        if at < len(text):
            raise JSONDecodeError("Extra data", text, at)
    except (ValueError, RecursionError) as error:
        raise not_json(error) from None


def _skip(text: str, at: int) -> int:
    found = _blank.match(text, at)
    return found.end() if found else at
