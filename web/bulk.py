"""The view for a list of transactions. It validates each item alone, as a single PUT does, and commits them together.

Lists do not go through group commit, because single PUTs would wait for them. A few threads commit only lists, and the
number of lists in memory is limited. A list beyond the limit waits for two seconds and then gets a 503.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Final

from flask import Blueprint, Response, g, request

from shared.accepting import Reply, accept, isolate_failing
from shared.errors import Invalid, PaymentsError, Unavailable
from shared.model import Status, TransactionRequest
from shared.settings import settings
from shared.showing import describe_rejection
from web.answers import JsonResponse
from web.backlog import reader
from web.bodies import validate
from web.intake import COMMIT_TIMEOUT_SECONDS, group_commit
from web.lists import MAX_LIST_ITEMS, NDJSON, read_list
from web.operation import JSON, TEXT, ApiResponse, Schema, documented
from web.schemas import NewTransaction, ResultsOut, parse_uid

MAX_LISTS: Final = 16  # in memory, being read or committed
MAX_LIST_COMMITS: Final = 2  # at once: each uses a core of Postgres for a while
MAX_FAILING_ROWS: Final = 16  # if more rows fail one by one, the cause is not the rows
LIST_ADMISSION_TIMEOUT_SECONDS: Final = 2.0
MAX_UID_CHARACTERS: Final = 200  # of an invalid uid that a result repeats

# An invalid item does not make the list invalid. The maximum is not in the schema: more items get a 413, and readers of
# the document expect a 422 for a body that does not match the schema.
_ARRAY: Final[Schema] = {
    "type": "array",
    "items": {"anyOf": [{"$ref": f"#/components/schemas/{NewTransaction.__name__}"}, {}]},
    "description": f"Up to {MAX_LIST_ITEMS} transactions. An invalid item does not affect the others.",
}
_LINES: Final[Schema] = {
    **TEXT,
    "description": f"NDJSON: up to {MAX_LIST_ITEMS} transactions, one per line. An invalid line affects no other line.",
}

Result = dict[str, Any]

blueprint = Blueprint("bulk", __name__)

_list_slots = threading.BoundedSemaphore(MAX_LISTS)
_commits = ThreadPoolExecutor(MAX_LIST_COMMITS, thread_name_prefix="bulk")  # its threads start with the first list


@blueprint.put("/api/transactions/")
@documented(
    {202: ApiResponse(ResultsOut, "One result for each transaction, in the order sent.")},
    body={JSON: _ARRAY, NDJSON: _LINES},
    problems=("backlog_full",),
)
def put_transactions() -> Response:
    """Accepts a list of transactions in one commit and returns one result for each."""
    with _admission():
        items = read_list(request, _parse_item)
        requests = [item for item in items if isinstance(item, TransactionRequest)]
        replies = iter(submit(requests) if requests else ())
        results = [_result(item, next(replies)) if isinstance(item, TransactionRequest) else item for item in items]
        return JsonResponse({"results": results}, 202)


@cache
def _admission_slots() -> threading.BoundedSemaphore:
    """Returns the limit of lists that are read or wait. It leaves most threads to other requests."""
    return threading.BoundedSemaphore(settings().web_threads // 8)


@contextmanager
def _admission() -> Iterator[None]:
    """Holds a place among the lists in memory. Raises Unavailable if none becomes free in time."""
    busy = Unavailable("overloaded", "The server handles too many lists. Nothing was accepted.")
    if not _admission_slots().acquire(blocking=False):
        raise busy
    try:
        if not _list_slots.acquire(timeout=LIST_ADMISSION_TIMEOUT_SECONDS):
            raise busy
        try:
            yield
        finally:
            _list_slots.release()
    finally:
        _admission_slots().release()


def _parse_item(item: Any) -> TransactionRequest | Result:
    """Returns the request to accept, or the result for an invalid item."""
    try:
        if isinstance(item, Invalid):
            raise item
        content = validate(item, NewTransaction)
    except Invalid as error:
        return _invalid_result(_uid_as_sent(item), error)
    return TransactionRequest(
        content.uid, content.user_id, content.type, content.amount, content.timestamp, g.request_id, g.arrived
    )


def _uid_as_sent(item: Any) -> str | None:
    """Returns the item's uid. If that is not a UUID, returns the text as sent, or None if it cannot be shown."""
    uid = item.get("uid") if isinstance(item, dict) else None
    try:
        return str(parse_uid(uid))
    except ValueError:
        is_printable = isinstance(uid, str) and len(uid) <= MAX_UID_CHARACTERS and uid.isprintable()
        return str(uid) if is_printable else None


def _invalid_result(uid: str | None, error: PaymentsError) -> Result:
    return {"uid": uid, "status": "INVALID", "code": error.code, "detail": error.detail}


def _result(submitted: TransactionRequest, reply: Reply) -> Result:
    if isinstance(reply, PaymentsError):
        return _invalid_result(str(submitted.uid), reply)
    transaction = reply.transaction
    result: Result = {"uid": str(submitted.uid), "status": transaction.status}
    if transaction.status == Status.REJECTED:
        result.update(code=transaction.reason, detail=describe_rejection(transaction))
    return result


def submit(requests: Sequence[TransactionRequest]) -> list[Reply]:
    """Accepts the requests in one commit and returns one reply for each, in order.

    Raises Unavailable if nothing was accepted, or with the code database_unavailable if the result is not known in
    time. Passes on the errors of SQLAlchemy.
    """
    pending_replies = _commits.submit(_accept_unless_full, requests, time.monotonic() + COMMIT_TIMEOUT_SECONDS)
    try:
        return pending_replies.result(COMMIT_TIMEOUT_SECONDS)
    except NotInTime:
        if pending_replies.cancel():
            raise Unavailable("overloaded", "Other lists are being committed. Nothing was accepted.") from None
        raise Unavailable(
            "database_unavailable",
            "The database did not answer in time. It is not known whether the list was accepted: send it again.",
        ) from None


def _accept_unless_full(requests: Sequence[TransactionRequest], deadline: float) -> list[Reply]:
    # Not `is_full`: its value may be old if no request came for a while, and a list adds many transactions at once.
    if reader.read().pending >= settings().backlog_limit:
        raise Unavailable(
            "backlog_full",
            "Too many transactions wait to be settled. Nothing was accepted: send the list again later.",
            retry_seconds=reader.retry_seconds(),
        )
    replies = isolate_failing(partial(accept, bulk=True), requests, deadline=deadline, max_failing=MAX_FAILING_ROWS)
    group_commit.ring(requests, replies)
    return replies
