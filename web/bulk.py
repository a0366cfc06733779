"""PUT of a list of transactions: each item is judged alone, as a single PUT would; all that is good is one commit.

Lists do not go through the intake: a single PUT would wait for each of them. A few threads of their own commit them,
and a bounded number of lists is in memory; whoever comes beyond that waits a moment, and is then told to come back.
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
from shared.model import Request, Status
from shared.settings import settings
from shared.showing import describe_rejection
from web.answers import JsonAnswer
from web.backlog import reader
from web.bodies import validate
from web.intake import PATIENCE_SECONDS, intake
from web.lists import MOST_ITEMS, NDJSON, read_list
from web.operation import JSON, TEXT, ApiResponse, Schema, documented
from web.schemas import NewTransaction, ResultsOut, parse_uid

MOST_LISTS: Final = 16  # in memory, read or about to be committed
MOST_COMMITS: Final = 2  # at once: each takes a processor of Postgres for a while
MAX_FAILING: Final = 16  # rows that fail alone; more are no fault of the rows
DOOR_SECONDS: Final = 2.0
MOST_UID_CHARACTERS: Final = 200  # of what was sent in place of a uid

# An invalid item does not make the list invalid. The maximum is given in words, because more items are refused with 413,
# and a schema that is broken means 422 to every reader of the document.
_ARRAY: Final[Schema] = {
    "type": "array",
    "items": {"anyOf": [{"$ref": f"#/components/schemas/{NewTransaction.__name__}"}, {}]},
    "description": f"Up to {MOST_ITEMS} transactions. An invalid item does not affect the others.",
}
_LINES: Final[Schema] = {
    **TEXT,
    "description": f"NDJSON: up to {MOST_ITEMS} lines, a transaction each. An invalid line does not affect the others.",
}

Result = dict[str, Any]

blueprint = Blueprint("bulk", __name__)

_room = threading.BoundedSemaphore(MOST_LISTS)
_commits = ThreadPoolExecutor(MOST_COMMITS, thread_name_prefix="bulk")  # its threads start with the first list


@blueprint.put("/api/transactions/")
@documented(
    {202: ApiResponse(ResultsOut, "One result for each transaction, in the order sent.")},
    body={JSON: _ARRAY, NDJSON: _LINES},
    problems=("backlog_full",),
)
def put_transactions() -> Response:
    """Accepts a list of transactions in one commit and returns one result for each."""
    with _place():
        judged = read_list(request, _judge)
        asked = [item for item in judged if isinstance(item, Request)]
        replies = iter(submit(asked) if asked else ())
        results = [_result(item, next(replies)) if isinstance(item, Request) else item for item in judged]
        return JsonAnswer({"results": results}, 202)


@cache
def _door() -> threading.BoundedSemaphore:
    """So that lists cannot use up the threads that answer."""
    return threading.BoundedSemaphore(settings().web_threads // 8)


@contextmanager
def _place() -> Iterator[None]:
    """Raises Unavailable."""
    busy = Unavailable("overloaded", "More lists come than this process takes. Nothing was accepted.")
    if not _door().acquire(blocking=False):
        raise busy
    try:
        if not _room.acquire(timeout=DOOR_SECONDS):
            raise busy
        try:
            yield
        finally:
            _room.release()
    finally:
        _door().release()


def _judge(item: Any) -> Request | Result:
    """A request to accept, or what is wrong with the item."""
    try:
        if isinstance(item, Invalid):
            raise item
        asked = validate(item, NewTransaction)
    except Invalid as error:
        return _invalid(_uid_as_sent(item), error)
    return Request(asked.uid, asked.user_id, asked.type, asked.amount, asked.timestamp, g.request_id, g.arrived)


def _uid_as_sent(item: Any) -> str | None:
    """The uid if it is one; otherwise what stands in its place, if it can be shown."""
    uid = item.get("uid") if isinstance(item, dict) else None
    try:
        return str(parse_uid(uid))
    except ValueError:
        shown = isinstance(uid, str) and len(uid) <= MOST_UID_CHARACTERS and uid.isprintable()
        return str(uid) if shown else None


def _invalid(uid: str | None, error: PaymentsError) -> Result:
    return {"uid": uid, "status": "INVALID", "code": error.code, "detail": error.detail}


def _result(asked: Request, reply: Reply) -> Result:
    if isinstance(reply, PaymentsError):
        return _invalid(str(asked.uid), reply)
    stands = reply.transaction
    shown: Result = {"uid": str(asked.uid), "status": stands.status}
    if stands.status == Status.REJECTED:
        shown.update(code=stands.reason, detail=describe_rejection(stands))
    return shown


def submit(requests: Sequence[Request]) -> list[Reply]:
    """Accepts the requests in one commit and returns one reply for each, in order.

    Raises Unavailable if nothing was accepted, or if the result is not known in time (its code tells which); and what
    SQLAlchemy raises.
    """
    answered = _commits.submit(_accept_unless_full, requests, time.monotonic() + PATIENCE_SECONDS)
    try:
        return answered.result(PATIENCE_SECONDS)
    except NotInTime:
        if answered.cancel():
            raise Unavailable("overloaded", "Other lists are being committed. Nothing was accepted.") from None
        raise Unavailable(
            "database_unavailable",
            "The database did not answer in time. Whether the list was accepted is not known: send it again.",
        ) from None


def _accept_unless_full(requests: Sequence[Request], deadline: float) -> list[Reply]:
    # Not `is_full`: between two lists there may be no reading for long, and a list is many.
    if reader.read().pending >= settings().backlog_limit:
        raise Unavailable(
            "backlog_full",
            "Too many transactions wait to be settled. Nothing was accepted: send the list again later.",
            retry_seconds=reader.retry_seconds(),
        )
    replies = isolate_failing(partial(accept, bulk=True), requests, deadline=deadline, max_failing=MAX_FAILING)
    intake.ring(requests, replies)
    return replies
