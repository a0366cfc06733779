"""The feed's cursor as text: comes back as it went out, needs no escaping, and nothing else passes for one."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.payments.feed import FEED_CURSOR_PATTERN, FeedPosition, UserPosition, format_cursor, parse_cursor
from shared.payments.model import LANES

pytestmark = pytest.mark.unit

IDS = st.integers(0, 2**63 - 1)
GOOD = format_cursor(FeedPosition(tuple(range(LANES)), UserPosition(7, 9)))


@given(st.builds(FeedPosition, st.tuples(*[IDS] * LANES), st.none() | st.builds(UserPosition, IDS, IDS)))
def test_a_cursor_comes_back_as_it_went_out(cursor: FeedPosition) -> None:
    text = format_cursor(cursor)
    assert parse_cursor(text) == cursor
    assert re.fullmatch("[A-Za-z0-9_-]+", text)


@settings(max_examples=15)  # they are slow to make
@given(st.from_regex(FEED_CURSOR_PATTERN, fullmatch=True))
def test_whatever_looks_like_one_can_be_read(text: str) -> None:
    cursor = parse_cursor(text.rstrip("\n"))
    assert len(cursor.lanes) == LANES
    assert all(0 <= last < 2**63 for last in (*cursor.lanes, *(cursor.user_position or ())))


def test_an_empty_one_is_the_beginning() -> None:
    assert parse_cursor("") == FeedPosition() == parse_cursor(format_cursor(FeedPosition()))


@pytest.mark.parametrize(
    "text",
    [
        " ",
        "0",
        "-1",
        "null",
        GOOD + "\n",
        GOOD + "-1",
        GOOD + "_1-1",
        GOOD.upper(),
        GOOD.replace("-", "+"),
        GOOD.replace("_7-9", "_7"),
        GOOD.replace("_7-9", "_"),
        GOOD.replace("1-0-1-", "1-0-"),
        GOOD.replace("1-0-1-", "2-0-1-"),
        GOOD.replace("1-0-1-", "1-0--1-"),
        GOOD.replace("1-0-1-", "1-0-8000000000000000-"),
        GOOD.replace("1-0-1-", "1-0-00000000000000001-"),
        GOOD.replace("1-0-1-", "1-0-\u0661-"),
        GOOD * 100,
    ],
)
def test_what_this_service_did_not_give_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="none that this service gave"):
        parse_cursor(text)
