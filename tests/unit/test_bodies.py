"""Bodies on their way take memory: there is a bound on it, and small ones that come slowly hardly count."""

from contextlib import ExitStack

import pytest
from flask import Request
from werkzeug.test import EnvironBuilder

from shared.errors import Unavailable
from web.bodies import MAX_ARRIVING_BYTES, MOST_BYTES, arriving

pytestmark = pytest.mark.unit


def request(length: int | None) -> Request:
    environ = EnvironBuilder(method="PUT").get_environ()
    if length is None:
        environ.update(HTTP_TRANSFER_ENCODING="chunked")
    else:
        environ.update(CONTENT_LENGTH=str(length))
    return Request(environ)


@pytest.mark.parametrize(
    ("length", "most_bytes"), [(MOST_BYTES, MOST_BYTES), (None, MOST_BYTES), (100 * MOST_BYTES, 100 * MOST_BYTES)]
)
def test_so_many_large_bodies_may_be_on_their_way_and_no_more(length: int | None, most_bytes: int) -> None:
    with ExitStack() as opened:
        for _ in range(MAX_ARRIVING_BYTES // MOST_BYTES):
            opened.enter_context(arriving(request(length), most_bytes))
        with pytest.raises(Unavailable), arriving(request(1), MOST_BYTES):
            pass
    with arriving(request(length), most_bytes):
        pass


def test_thousands_of_small_ones_fit() -> None:
    with ExitStack() as opened:
        for _ in range(10_000):
            opened.enter_context(arriving(request(200), MOST_BYTES))


def test_what_fails_gives_its_room_back() -> None:
    for _ in range(2 * MAX_ARRIVING_BYTES // MOST_BYTES):
        with pytest.raises(ZeroDivisionError), arriving(request(MOST_BYTES), MOST_BYTES):
            raise ZeroDivisionError
    with arriving(request(MOST_BYTES), MOST_BYTES):
        pass
