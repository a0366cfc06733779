"""The parsers of amounts and instants under texts that are nearly right: each compared with a slower judge of its own.

PARSER_INPUTS says how many (20,000 each if not set; a million take half a minute).
"""

import os
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import TypeVar

import pytest

from shared.money import format_amount, parse_amount, parse_threshold
from shared.timestamps import format_instant, parse_instant

pytestmark = pytest.mark.unit

T = TypeVar("T")
INPUTS = int(os.environ.get("PARSER_INPUTS", "20000"))
PIECES = [
    *"0123456789..--++eE,:;TtZz _/'\"\\%xX",
    *("\0", "\n", "\t", "\r", "\u00a0", "\u0661", "\uff11", "\u2212", "\u00b2", "\ud800", "\U0001d7d8", "\u202e"),
    *("NaN", "Infinity", "1e5", "0x10", "99", "00", "000000", "9999999999.99", "10000000000", ".001", "1_000"),
    *("2026-11-26", "20261126", "12:30:45", "T12:30", "+01:00", "-23:59", "24:00", "60", "-00:00", "0001-01-01", "9999-12-31"),
]  # fmt: skip
AMOUNTS = ["100", "100.0", "100.00", "0.01", "0", "0.00", "9999999999.99", "9999999999.995", "007", "1" * 40, "1" * 41]
INSTANTS = [
    *("2023-01-30", "2023-01-30T12:00:00Z", "2023-01-30 12:00:00.123456789+02:00", "20230130T120000,5Z"),
    *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.999999-23:59", "2024-02-29", "2023-02-29", "2023-01-30T24:00"),
]


def texts(seeds: list[str], seed: int) -> Iterator[str]:
    """Some pieces in any order, or what is right with a few of its characters changed."""
    draw = random.Random(seed)
    for _ in range(INPUTS):
        if draw.random() < 0.3:
            yield "".join(draw.choices(PIECES, k=draw.randrange(9)))
            continue
        text = list(draw.choice(seeds))
        for _ in range(draw.randrange(4)):
            at = draw.randrange(len(text) + 1)
            text[at : at + draw.randrange(3)] = draw.choices(PIECES, k=draw.randrange(3))
        yield "".join(text)


def judged(text: str) -> int | None:
    """Minor units of a decimal with at most two digits after the point, zero included; None if it is none."""
    whole, point, fraction = text.partition(".")
    if len(text) > 40 or not whole or bool(point) != bool(fraction) or len(fraction) > 2:
        return None
    if not set(whole + fraction) <= set("0123456789"):
        return None
    minor = int(Decimal(text) * 100)
    return minor if minor <= 999_999_999_999 else None


def test_an_amount_is_read_exactly_or_refused() -> None:
    read = 0
    for text in texts(AMOUNTS, seed=1):
        expected = judged(text)
        for value in (text, _number(text)):
            if value is None:
                continue
            wanted = expected if value is text else judged(str(value))
            assert _or_none(parse_threshold, value) == wanted, repr(value)
            assert _or_none(parse_amount, value) == (wanted or None), repr(value)
        if expected is not None:
            read += 1
            assert parse_threshold(format_amount(expected)) == expected
    assert INPUTS / 20 < read < INPUTS


def test_an_instant_is_parsed_as_by_the_standard_library() -> None:
    read = 0
    for text in texts(INSTANTS, seed=2):
        instant = _or_none(parse_instant, text)
        if instant is None:
            continue
        read += 1
        assert instant.tzinfo is UTC
        assert parse_instant(format_instant(instant)) == instant
        assert text.isascii()
        assert instant == _by_the_library(text), repr(text)
    assert INPUTS / 20 < read < INPUTS


def _by_the_library(text: str) -> datetime:
    """With what `fromisoformat` does not know spelt out: a space for the plus of a zone, more than six digits."""
    body = text[:11] + text[11:].replace(" ", "+")
    found = datetime.fromisoformat(body.upper().replace(",", "."))
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)


def _number(text: str) -> Decimal | None:
    """As a JSON number would come."""
    try:
        return Decimal(text) if text.isascii() else None
    except InvalidOperation:
        return None


def _or_none(parse: Callable[[object], T], value: object) -> T | None:
    try:
        return parse(value)
    except ValueError:
        return None
