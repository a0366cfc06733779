"""What every view reads of a request besides its body: query parameters, preferences, conditions."""

import base64
import re
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, TypeVar

from flask import Request as HttpRequest

from shared.errors import Invalid, invalid_field
from shared.instants import parse_instant
from shared.queries.statement import Key
from web.waiting import MOST_SECONDS

Word = TypeVar("Word", bound=StrEnum)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_WAIT = re.compile(r'wait\s*=\s*"?([0-9]{1,9})"?', re.IGNORECASE)


def check_names(http: HttpRequest, known: Collection[str]) -> None:
    """Raises Invalid for a query parameter that means nothing here: a misspelt filter must not pass for none."""
    for name in http.args:
        if name not in known:
            raise invalid_field(name[:200], "is not a query parameter of this address")


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
    """Opaque to clients; of A-Z, a-z, 0-9, - and _."""
    if key is None:
        return None
    text = f"{(key.accepted_at - _EPOCH) // _MICROSECOND}.{key.accept_order}"
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def read_cursor(http: HttpRequest) -> Key | None:
    """Raises Invalid."""
    text = http.args.get("cursor")
    if not text:
        return None
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode(
            "ascii"
        )
        micros, order = re.fullmatch(r"(-?[0-9]{1,18})\.([0-9]{1,18})", decoded, re.ASCII).groups()  # type: ignore[union-attr]
        return Key(_EPOCH + int(micros) * _MICROSECOND, int(order))
    except (ValueError, AttributeError, OverflowError):
        raise Invalid("invalid_request", "cursor: is none that this address gave", []) from None


def preferred_wait(http: HttpRequest) -> int | None:
    """The seconds of `Prefer: wait=N` (RFC 7240), capped; None where there is no such preference.

    A preference that cannot be read is ignored, as the RFC has it; the first of several counts.
    """
    for header in http.headers.getlist("Prefer"):
        for preference in header.split(","):
            written = _WAIT.fullmatch(preference.split(";")[0].strip())
            if written:
                return min(int(written.group(1)), MOST_SECONDS)
    return None
