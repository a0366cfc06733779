"""What every view reads of a request besides its body: query parameters, preferences, conditions."""

import re
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, TypeVar

from flask import Request as HttpRequest
from flask import g

from shared.errors import NotFound, invalid_field
from shared.instants import parse_instant
from shared.queries.statement import Key
from shared.registering import OwnedKey
from web.waiting import MOST_SECONDS

Word = TypeVar("Word", bound=StrEnum)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
# Instants up to the year 5138, and any acceptance number.
CURSOR_PATTERN: Final = "^([0-9]{1,17}-[0-9]{1,18})?$"
MAX_KEY_CHARACTERS: Final = 200
KEY_PATTERN: Final = "^[!-~]([ -~]*[!-~])?$"
# A comma within quotes separates nothing.
_PREFERENCES = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*"?)+')
_WAIT = re.compile(
    r'\s*wait\s*=\s*(?:(?P<token>[0-9]+)|"(?P<quoted>[0-9]+)")\s*(?:;.*)?', re.ASCII | re.IGNORECASE | re.DOTALL
)


def check_names(http: HttpRequest, known: Collection[str]) -> None:
    """Raises Invalid for a query parameter that is unknown, since a misspelt filter must not pass for none, or given twice."""
    for name, values in http.args.lists() if http.query_string else ():
        if name not in known:
            raise invalid_field(name[:200], "is not a query parameter of this address")
        if len(values) > 1:
            raise invalid_field(name, "must be given once")


def read_idempotency_key(http: HttpRequest) -> OwnedKey | None:
    """Returns the Idempotency-Key with the API key that it belongs to; None where there is none. Raises Invalid."""
    text = http.environ.get("HTTP_IDEMPOTENCY_KEY")
    if text is None:
        return None
    key = _of_one_line(text)
    if not 1 <= len(key) <= MAX_KEY_CHARACTERS or not re.fullmatch(KEY_PATTERN, key):
        raise invalid_field("Idempotency-Key", f"must have 1 to {MAX_KEY_CHARACTERS} characters, ASCII and printable")
    return OwnedKey(g.key_id, key)


def _of_one_line(text: str) -> str:
    """Returns a header's value once where the server has joined several lines that are alike by commas."""
    pieces = text.split(",")
    parts = [piece.strip() for piece in pieces]
    for length in range(1, len(parts) // 2 + 1):
        line = ",".join(pieces[:length]).strip()
        if line and len(parts) % length == 0 and parts == parts[:length] * (len(parts) // length):
            return line
    return text


def read_id(text: str, not_found: Callable[[object], NotFound]) -> int:
    """An id in a path. What is none names nothing: raises NotFound."""
    if not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII):
        raise not_found(text[:200])
    return int(text)


def read_instant(http: HttpRequest, name: str) -> datetime | None:
    """Raises Invalid."""
    text = http.args.get(name)
    if text is None:
        return None
    try:
        return parse_instant(text)
    except ValueError as error:
        raise invalid_field(name, str(error)) from None


def read_word(http: HttpRequest, name: str, words: type[Word]) -> Word | None:
    """Raises Invalid."""
    text = http.args.get(name)
    if text is None:
        return None
    try:
        return words(text)
    except ValueError:
        raise invalid_field(name, f"must be one of {', '.join(words)}") from None


def read_limit(http: HttpRequest, default: int, most: int) -> int:
    """Raises Invalid."""
    text = http.args.get("limit", str(default))
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) or not 1 <= int(text) <= most:
        raise invalid_field("limit", f"must be a whole number from 1 to {most}")
    return int(text)


def write_cursor(key: Key | None) -> str | None:
    """Of digits and one hyphen, so that it needs no escaping anywhere."""
    return key and f"{(key.accepted_at - _EPOCH) // _MICROSECOND}-{key.accept_order}"


def read_cursor(http: HttpRequest) -> Key | None:
    """None for an empty one: from the beginning. Raises Invalid."""
    text = http.args.get("cursor", "")
    if not re.fullmatch(CURSOR_PATTERN, text, re.ASCII):
        raise invalid_field("cursor", "is none that this address gave")
    if not text:
        return None
    microseconds, order = text.split("-")
    return Key(_EPOCH + int(microseconds) * _MICROSECOND, int(order))


def preferred_wait(http: HttpRequest) -> int | None:
    """The seconds of `Prefer: wait=N` (RFC 7240), capped; None where there is no such preference.

    A preference that cannot be read is ignored, as the RFC has it; the first of several counts.
    """
    for preference in _PREFERENCES.findall(http.environ.get("HTTP_PREFER", "")):
        written = _WAIT.fullmatch(preference)
        if written:
            digits = written["token"] or written["quoted"]
            return min(int(digits), MOST_SECONDS) if len(digits) < 10 else MOST_SECONDS
    return None
