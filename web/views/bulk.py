"""PUT of a list of transactions: each item is judged alone, as a single PUT would; all valid ones are one commit.

A bounded number of lists is in memory. A list beyond that waits a moment, and is then refused.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

from flask import Blueprint, Response, g, request

from shared.errors import Invalid, PaymentsError, Unavailable
from shared.payments.accept import Reply
from shared.payments.model import Status, TransactionRequest
from shared.payments.to_json import describe_rejection
from shared.settings import settings
from web.commit import bulk_commit
from web.http.body import validate
from web.http.item_stream import MAX_LIST_ITEMS, NDJSON, read_list
from web.http.responses import JsonResponse
from web.openapi.operation import JSON, TEXT, ApiResponse, Schema, documented
from web.schemas import NewTransaction, ResultsOut, parse_uid

MAX_LISTS: Final = 16  # in memory, being read or committed
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
        replies = iter(bulk_commit.submit(requests) if requests else ())
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
