"""Reading a list item by item: the same items as reading it whole, wherever the pieces are cut."""

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Request
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import EnvironBuilder

from shared.errors import Invalid, PaymentsError
from web.http.body import parse_json
from web.http.item_stream import MAX_LINE_BYTES, MAX_LIST_BYTES, MAX_LIST_ITEMS, NDJSON, _items_of_lines, read_list

pytestmark = pytest.mark.unit

JSON = "application/json"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def told(item: Any) -> Any:
    return (item.code, item.detail) if isinstance(item, PaymentsError) else item


def read(body: bytes, media: str = JSON) -> list[Any]:
    environ = EnvironBuilder(
        method="PUT", input_stream=io.BytesIO(body), content_length=len(body), content_type=media
    ).get_environ()
    return read_list(Request(environ), told)


def refusal(body: bytes, media: str = JSON) -> tuple[str, str]:
    with pytest.raises(Invalid) as caught:
        read(body, media)
    return caught.value.code, caught.value.detail


def alone(item: bytes) -> Any:
    """As the body of a single request is read."""
    try:
        return parse_json(item)
    except Invalid as error:
        return told(error)


@given(st.lists(VALUES, max_size=5), st.sampled_from(["", " ", "\r\n\t "]))
def test_an_array_is_read_as_a_whole_would_be(items: list[Any], blank: str) -> None:
    text = blank + "[" + f"{blank},{blank}".join(map(json.dumps, items)) + blank + "]" + blank
    assert read(text.encode()) == items


@given(
    st.lists(VALUES.map(json.dumps) | st.text('[]{},:"\\ 1', max_size=6), max_size=5), st.sampled_from(["\n", "\r\n"])
)
def test_each_line_is_read_as_alone(lines: list[str], end: str) -> None:
    """The carriage return is white space of the line, and counted in what is told of a broken one."""
    ended = [(line + end[:-1]).encode() for line in lines]
    assert read(b"".join(line + b"\n" for line in ended), NDJSON) == [alone(line) for line in ended if line.strip()]


def cut(body: bytes, size: int) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
def test_lines_are_the_same_wherever_the_body_is_cut(size: int) -> None:
    body = b'{"a": 1}\n\n  \r\n[2]\nbroken\n"\xc3\xa9"\r\n3'
    found = [told(item) for item in _items_of_lines(cut(body, size))]
    assert found == [{"a": 1}, [2], alone(b"broken"), "é", 3]


@pytest.mark.parametrize("size", [1000, MAX_LINE_BYTES, 10 * MAX_LINE_BYTES])
def test_a_line_that_is_too_long_is_told_so_and_the_next_is_read(size: int) -> None:
    fits = b'"' + b"x" * (MAX_LINE_BYTES - 2) + b'"'
    for long in (b" " + fits, fits * 9, b" " * 8 * MAX_LINE_BYTES + b"1"):
        found = [told(item) for item in _items_of_lines(cut(b"1\n" + long + b"\n2\n" + fits + b"\n" + long, size))]
        too_long = ("body_too_large", f"A line must have at most {MAX_LINE_BYTES} bytes.")
        assert found == [1, too_long, 2, json.loads(fits), too_long]


def test_a_duplicate_name_makes_only_its_item_invalid() -> None:
    twice = ('{"a": 1, "a": 1}', '[{"b": {"a": 1, "a": 2}}]')
    found = read(f'[1, {twice[0]}, {{"a": 1}}, {twice[1]}, 2]'.encode())
    assert found == [1, alone(twice[0].encode()), {"a": 1}, alone(twice[1].encode()), 2]
    assert found[1][0] == "not_json"


BROKEN = [
    "",
    " ",
    "[",
    "[1",
    "[1,",
    "[1,]",
    "[,]",
    "[1 2]",
    "[1]]",
    "[1]x",
    "[}",
    "[1}",
    "x",
    '{"a": 1, "a": 1}',
    "{",
    "[[[",
    "\ufeff[]",
    "[" * 99_999,
]


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_an_array_that_is_broken_is_refused_as_a_whole(text: str) -> None:
    assert refusal(text.encode())[0] == "not_json"


@pytest.mark.parametrize("body", [b"\xff", b"[\xff]", b"[1]\xff", "[]".encode("utf-16")])
def test_so_is_what_is_no_utf_8(body: bytes) -> None:
    assert refusal(body)[0] == "not_json"


@pytest.mark.parametrize("body", [b"{}", b"1", b'"[]"', b"null", b"NaN"])
def test_json_that_is_no_array_is_no_valid_request(body: bytes) -> None:
    assert refusal(body) == ("invalid_request", "Input should be an array of transactions")


@pytest.mark.parametrize(("media", "between"), [(JSON, b","), (NDJSON, b"\n")])
def test_as_many_items_as_may_be_and_one_more(media: str, between: bytes) -> None:
    def body(count: int) -> bytes:
        items = between.join([b"0"] * count)
        return b"[%s]" % items if media == JSON else items

    assert read(body(MAX_LIST_ITEMS), media) == [0] * MAX_LIST_ITEMS
    assert refusal(body(MAX_LIST_ITEMS + 1), media) == ("body_too_large", "A list must have at most 10000 items.")


@pytest.mark.parametrize("media", [JSON, NDJSON])
def test_as_many_bytes_as_may_be_and_one_more(media: str) -> None:
    filled = b"[1]" + (b" " if media == JSON else b"\n") * (MAX_LIST_BYTES - 3)
    assert read(filled, media) in ([1], [[1]])
    assert refusal(filled + b"\n", media) == ("body_too_large", f"The body must have at most {MAX_LIST_BYTES} bytes.")


@pytest.mark.parametrize(
    "body",
    [b"[" * MAX_LIST_BYTES, b"[" + b"[]," * 1_300_000, b'[{"a":' * 600_000, b"[" + b"9" * (MAX_LIST_BYTES - 2) + b"]"],
    ids=["brackets", "empty arrays", "nested", "a number"],
)
@pytest.mark.parametrize("media", [JSON, NDJSON])
def test_four_mebibytes_of_anything_are_read_or_refused(body: bytes, media: str) -> None:
    try:
        assert len(read(body, media)) == 1
    except Invalid as error:
        assert error.code in ("not_json", "body_too_large")  # noqa: PT017


def test_numbers_are_exact() -> None:
    assert [str(number) for number in read(b"[0.1000000000000000055511151231257827, 100.5, 1e5]")] == [
        *("0.1000000000000000055511151231257827", "100.5", "Infinity")
    ]
