"""Amounts: integer minor units in the service, decimal strings with two digits outside. A float is never used."""

import re
from decimal import Decimal
from typing import Final

MAX_AMOUNT: Final = 9_999_999_999_99  # 9999999999.99
MAX_BALANCE: Final = 90_000_000_000_000_000_00  # 90000000000000000.00, under 2**63 - 1

MAX_AMOUNT_CHARACTERS: Final = 40  # bounds the cost of parsing
# `[0-9]`, not `\d`: the latter matches the digits of every script.
_WRITTEN = re.compile(r"([0-9]+)(?:\.([0-9]{1,2}))?", re.ASCII)
# The texts that each parser accepts, for the API description. AMOUNT_PATTERN excludes zero.
THRESHOLD_PATTERN: Final = r"^0*[0-9]{1,10}(\.[0-9]{1,2})?$"
AMOUNT_PATTERN: Final = r"^0*([1-9][0-9]{0,9}(\.[0-9]{1,2})?|0\.(0[1-9]|[1-9][0-9]?))$"


def parse_amount(value: object) -> int:
    """Returns the minor units of an amount as a client wrote it: a str, an int, or a Decimal from a JSON number.

    Raises ValueError, with a message for the client, if the amount is not positive, has more than two digits after
    the point, or exceeds 9999999999.99. It also rejects a float, because a float is not exact.
    """
    if (minor := _parse(value)) == 0:
        raise ValueError("must be greater than zero")
    return minor


def parse_threshold(value: object) -> int:
    """Returns the minor units of a threshold, by the rules of `parse_amount`. Zero is valid, too."""
    return _parse(value)


def _parse(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (str, int, Decimal)):
        raise ValueError("must be a decimal string or a number")
    text = str(value)
    match = _WRITTEN.fullmatch(text) if len(text) <= MAX_AMOUNT_CHARACTERS else None
    if not match:
        raise ValueError("must be a positive decimal with at most two digits after the point")
    whole, fraction = match.groups()
    minor = int(whole) * 100 + int((fraction or "").ljust(2, "0"))
    if minor > MAX_AMOUNT:
        raise ValueError(f"must be at most {format_amount(MAX_AMOUNT)}")
    return minor


def format_amount(minor: int) -> str:
    """Returns minor units as a decimal string with exactly two digits: 10050 -> "100.50"."""
    sign = "-" if minor < 0 else ""
    whole, fraction = divmod(abs(minor), 100)
    return f"{sign}{whole}.{fraction:02d}"
