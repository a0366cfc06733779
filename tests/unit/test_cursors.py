"""The cursor of the events: sixteen numbers as one text."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.cursors import CURSOR_PATTERN, MOST_ID, read_cursor, write_cursor
from shared.status import LANES

pytestmark = pytest.mark.unit

ids = st.lists(st.integers(0, MOST_ID), min_size=LANES, max_size=LANES)


@given(ids)
def test_what_is_written_is_read(numbers: list[int]) -> None:
    assert read_cursor(write_cursor(numbers)) == numbers


@given(ids)
def test_a_cursor_needs_no_escaping(numbers: list[int]) -> None:
    assert re.fullmatch(CURSOR_PATTERN, write_cursor(numbers), re.ASCII)


def test_the_longest_cursor_is_read() -> None:
    assert read_cursor(write_cursor([MOST_ID] * LANES)) == [MOST_ID] * LANES


def test_an_empty_text_is_the_beginning() -> None:
    assert read_cursor("") == [0] * LANES


@pytest.mark.parametrize(
    "text",
    [
        *("A", "AAAA", "é", "~", "a" * 1000, write_cursor([1] * 15), write_cursor([1] * 17)),
        *(write_cursor([MOST_ID + 1] + [0] * 15), write_cursor([1] * LANES) + "A", write_cursor([1] * LANES) + "="),
        " " + write_cursor([1] * LANES),
        "Ag" + write_cursor([1] * LANES)[2:],  # another version
        "AYEA" + write_cursor([1] * 15)[2:],  # 1 in two bytes
    ],
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="none that this service gave"):
        read_cursor(text)
