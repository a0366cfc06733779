"""Instants: aware UTC datetimes with microseconds in the service, RFC 3339 in answers. Requests may use ISO 8601."""

import re
from datetime import UTC, datetime

# The calendar forms of ISO 8601 that `datetime.fromisoformat` reads alike in every Python from 3.11 on. By itself it
# accepts any character between date and time, and 24:00 from Python 3.14 on.
_WRITTEN = re.compile(
    r"(?P<date>\d{4}(?P<hyphen>-?)\d\d(?P=hyphen)\d\d)"
    r"(?:[Tt ](?P<time>(?!24)\d\d(?:(?P<colon>:?)\d\d(?:(?P=colon)\d\d(?:[.,](?P<fraction>\d+))?)?)?)"
    r"(?P<zone>[Zz]|[-+ ]\d\d(?::?[0-5]\d)?)?)?",
    re.ASCII,
)


def parse_instant(text: object) -> datetime:
    """Returns the UTC instant of an ISO 8601 text. Digits of the fraction beyond the microsecond are cut off.

    A text without a zone is UTC; a date without a time is its midnight. A space before the zone counts as `+`, because
    a URL decodes an unescaped `+` to a space. Raises ValueError, with a message for the client, if the text is not an
    instant.
    """
    match = _WRITTEN.fullmatch(text) if isinstance(text, str) else None
    if not match:
        raise ValueError("must be an ISO 8601 instant, such as 2023-01-30T12:00:00Z")
    date, time, fraction, zone = match.group("date", "time", "fraction", "zone")
    if fraction:
        time = time[: -len(fraction)].replace(",", ".") + fraction[:6].ljust(6, "0")
    zone = (zone or "Z").upper().replace(" ", "+")
    try:
        return datetime.fromisoformat(f"{date}T{time or '00:00'}{zone}").astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("must be an instant from year 1 to 9999 that exists") from None


def format_instant(instant: datetime) -> str:
    """Returns RFC 3339 in UTC with six digits of fraction, so that the texts sort in the order of time."""
    return instant.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
