"""The statement as CSV (RFC 4180): one page, or all rows of the filter as a stream.

A stream reads one page per database transaction, in the order of the key. So a slow client holds no connection, no
snapshot, and at most a page in memory. It does hold a thread, hence the limit.
"""

import csv
import io
import threading
from collections.abc import Callable, Iterator
from functools import cache
from typing import Final
from urllib.parse import urlencode

from flask import Response, g, request

from shared.database import first_line, is_infrastructure_error
from shared.errors import Unavailable
from shared.logs import get_logger
from shared.payments.model import StatementKey
from shared.payments.reads import StatementPage
from shared.payments.to_json import transaction_to_json
from shared.settings import settings
from web.http.cursors import write_cursor
from web.limits import concurrency
from web.schemas import TransactionOut

MAX_PAGE_READS: Final = 2  # at once: streams must leave connections to other requests
# The server ends a failed body as if it were complete. An unclosed quote is an error for every strict CSV reader.
INCOMPLETE_MARK: Final = '"incomplete: the service failed while it sent this statement, ask again'

log = get_logger("statement_csv")

_page_reads = threading.BoundedSemaphore(MAX_PAGE_READS)


@cache
def _streams() -> threading.BoundedSemaphore:
    """Returns the limit of concurrent streams. It leaves most threads to other requests."""
    return threading.BoundedSemaphore(max(1, settings().web_threads // 8))


def csv_page(user_id: int, page: StatementPage) -> Response:
    """Returns a page as CSV. A Link header has the address of the next page."""
    response = _answer(user_id, _header() + _lines(page))
    if page.after:
        query = urlencode({**request.args.to_dict(), "cursor": write_cursor(page.after)})
        response.headers["Link"] = f'<{request.path}?{query}>; rel="next"'
    return response


def csv_stream(
    user_id: int, read_page: Callable[[StatementKey | None], StatementPage], after: StatementKey | None
) -> Response:
    """Returns all rows after the key as a stream of CSV.

    Raises Unavailable if too many streams are open, and the errors of `read_page` for the first page.
    """
    if not _streams().acquire(blocking=False):
        raise Unavailable("overloaded", "Too many statements are being sent. Try again later.")
    try:
        first = read_page(after)
    except BaseException:
        _streams().release()
        raise
    if request.method == "HEAD":  # no body is sent, so call_on_close would not be called
        _streams().release()
        return _answer(user_id, iter(()))
    response = _answer(user_id, _pages(first, read_page))
    response.call_on_close(_streams().release)
    response.call_on_close(concurrency.hold_until_closed(g))
    return response


def _answer(user_id: int, body: str | Iterator[str]) -> Response:
    response = Response(body, mimetype="text/csv")
    response.headers["Content-Disposition"] = f'attachment; filename="transactions-{user_id}.csv"'
    return response


def _pages(first: StatementPage, read_page: Callable[[StatementKey | None], StatementPage]) -> Iterator[str]:
    page, text = first, _header() + _lines(first)
    while True:
        if text:
            yield text
        if not page.after:
            return
        try:
            with _page_reads:
                page = read_page(page.after)
        except Exception as error:
            if is_infrastructure_error(error):
                log.warning("statement sent incomplete", error=first_line(error))
            else:
                log.exception("statement sent incomplete")
            yield INCOMPLETE_MARK
            return
        text = _lines(page)


def _header() -> str:
    return ",".join(TransactionOut.model_fields) + "\r\n"


def _lines(page: StatementPage) -> str:
    """Returns the rows as CSV. No column has free text of a client, so no cell can hold a spreadsheet formula."""
    text = io.StringIO(newline="")
    csv.DictWriter(text, list(TransactionOut.model_fields)).writerows(map(transaction_to_json, page.items))
    return text.getvalue()
