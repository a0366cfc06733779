"""Bodies on their way take memory: there is a bound on it, and small ones that come slowly hardly count."""

from contextlib import ExitStack

import pytest
from flask import Request
from werkzeug.test import EnvironBuilder

from shared.errors import Unavailable
from web.http.body import MAX_ARRIVING_BYTES, MAX_BODY_BYTES, stream_body

pytestmark = pytest.mark.unit


def request(length: int | None) -> Request:
    environ = EnvironBuilder(method="PUT").get_environ()
    if length is None:
        environ.update(HTTP_TRANSFER_ENCODING="chunked")
    else:
        environ.update(CONTENT_LENGTH=str(length))
    return Request(environ)


@pytest.mark.parametrize(
    ("length", "most_bytes"),
    [(MAX_BODY_BYTES, MAX_BODY_BYTES), (None, MAX_BODY_BYTES), (100 * MAX_BODY_BYTES, 100 * MAX_BODY_BYTES)],
)
def test_so_many_large_bodies_may_be_on_their_way_and_no_more(length: int | None, most_bytes: int) -> None:
    with ExitStack() as opened:
        for _ in range(MAX_ARRIVING_BYTES // MAX_BODY_BYTES):
            opened.enter_context(stream_body(request(length), most_bytes))
        with pytest.raises(Unavailable), stream_body(request(1), MAX_BODY_BYTES):
            pass
    with stream_body(request(length), most_bytes):
        pass


def test_thousands_of_small_ones_fit() -> None:
    with ExitStack() as opened:
        for _ in range(10_000):
            opened.enter_context(stream_body(request(200), MAX_BODY_BYTES))


def test_what_fails_gives_its_room_back() -> None:
    for _ in range(2 * MAX_ARRIVING_BYTES // MAX_BODY_BYTES):
        with pytest.raises(ZeroDivisionError), stream_body(request(MAX_BODY_BYTES), MAX_BODY_BYTES):
            raise ZeroDivisionError
    with stream_body(request(MAX_BODY_BYTES), MAX_BODY_BYTES):
        pass
