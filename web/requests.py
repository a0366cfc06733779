"""Reads ids in paths, request headers and the cursor of a statement. The module query_models reads query parameters."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from flask import Request as HttpRequest
from flask import g

from shared.errors import NotFound, invalid_field
from shared.model import StatementKey
from shared.registering import OwnedKey
from web.waiting import MAX_LONG_POLL_SECONDS

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
# Microseconds since 1970 (up to the year 5138), and the number in the order of acceptance.
STATEMENT_CURSOR_PATTERN: Final = "^([0-9]{1,17}-[0-9]{1,18})?$"
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


def write_cursor(key: StatementKey | None) -> str | None:
    """Returns the cursor of a statement's next page; None if there is none. Digits and one hyphen need no escaping."""
    return key and f"{(key.accepted_at - _EPOCH) // _MICROSECOND}-{key.accept_order}"


def parse_statement_cursor(text: str) -> StatementKey | None:
    """Returns the key after which a statement's page starts; None for an empty text, which is the first page.

    Raises ValueError if the text is not such a cursor.
    """
    if not re.fullmatch(STATEMENT_CURSOR_PATTERN, text, re.ASCII):
        raise ValueError("is not a cursor of this address")
    if not text:
        return None
    microseconds, order = text.split("-")
    return StatementKey(_EPOCH + int(microseconds) * _MICROSECOND, int(order))


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
