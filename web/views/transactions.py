"""The views of a transaction: submit it with PUT, read it with GET or POST.

The status code of a PUT shows the transaction's state.
"""

import uuid
from typing import Final

from flask import Blueprint, Response, g, request
from flask import Request as HttpRequest

from shared.errors import PaymentsError, transaction_not_found
from shared.payments import reads
from shared.payments.model import Status, Transaction, TransactionRequest
from shared.payments.to_json import describe_rejection, transaction_to_json
from web.commit.group_commit import group_commit
from web.commit.long_poll import wait_if_preferred
from web.http.body import read_json
from web.http.params import preferred_wait
from web.http.problems import problem
from web.http.responses import JsonResponse
from web.openapi.operation import ApiResponse, documented
from web.schemas import NewTransaction, Rejection, TransactionOut, parse_uid
from web.serving.loop import in_thread, on_loop

blueprint = Blueprint("transactions", __name__)

PENDING_RETRY_AFTER_SECONDS: Final = 1
_PUT_HEADERS: Final = ("Preference-Applied", "Idempotency-Replayed")
_FOUND: Final = ApiResponse(TransactionOut, "The transaction, in any state.", ("ETag",), ("Preference-Applied",))
_NOT_MODIFIED: Final = ApiResponse(
    None, "The transaction still has the ETag of If-None-Match.", ("ETag",), ("Preference-Applied",)
)


@blueprint.put("/api/transaction/")
@on_loop
@documented(
    {
        200: ApiResponse(TransactionOut, "The transaction is COMPLETED.", ("Location",), _PUT_HEADERS),
        202: ApiResponse(TransactionOut, "The transaction is PENDING.", ("Location", "Retry-After"), _PUT_HEADERS),
        409: ApiResponse(Rejection, "The transaction is REJECTED.", (), _PUT_HEADERS),
    },
    body=NewTransaction,
    headers=("Prefer",),
    problems=("user_not_found", "uid_reused", "backlog_full"),
)
def put_transaction() -> Response:
    """Accepts a transaction and returns it. The status code tells its state, also for a repeated request."""
    http: HttpRequest = request._get_current_object()  # type: ignore[attr-defined] # Flask's `request` proxy is slow
    content = read_json(http, NewTransaction)
    (reply,) = group_commit.submit(
        [
            TransactionRequest(
                content.uid, content.user_id, content.type, content.amount, content.timestamp, g.request_id, g.arrived
            )
        ]
    )
    if isinstance(reply, PaymentsError):
        raise reply
    seconds = preferred_wait(http)
    transaction, waited = wait_if_preferred(reply.transaction, seconds)
    response = _response_by_state(transaction)
    if reply.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return _add_preference_applied(response, seconds, waited)


@blueprint.get("/api/transaction/<uid>")
@on_loop
@documented({200: _FOUND, 304: _NOT_MODIFIED}, headers=("Prefer", "If-None-Match"))
def get_transaction(uid: str) -> Response:
    """Returns a transaction, in any state."""
    return _look_up(uid)


@blueprint.post("/api/transaction/<uid>")
@on_loop
@documented({200: _FOUND}, headers=("Prefer",))
def look_up_transaction(uid: str) -> Response:
    """Returns a transaction, in any state, in the same way as GET."""
    return _look_up(uid)


def _look_up(uid: str) -> Response:
    seconds = preferred_wait(request)
    transaction, waited = wait_if_preferred(in_thread(reads.get_transaction, _uid_of_path(uid)), seconds)
    tag = f"{transaction.uid}:{transaction.status.lower()}"  # only its status ever changes
    if request.method != "POST" and request.if_none_match.contains_weak(tag):
        response = Response(status=304)
    else:
        response = JsonResponse(transaction_to_json(transaction))
    response.set_etag(tag)
    return _add_preference_applied(response, seconds, waited)


def _response_by_state(transaction: Transaction) -> Response:
    document = transaction_to_json(transaction)
    if transaction.status == Status.REJECTED:
        return problem(
            409,
            str(transaction.reason),
            describe_rejection(transaction),
            transaction=document,
        )
    response = JsonResponse(document)
    response.headers.add("Location", f"/api/transaction/{transaction.uid}")
    if transaction.status == Status.PENDING:
        response.status_code = 202
        response.headers.add("Retry-After", str(PENDING_RETRY_AFTER_SECONDS))
    return response


def _add_preference_applied(response: Response, seconds: int | None, waited: bool) -> Response:
    if waited:
        response.headers["Preference-Applied"] = f"wait={seconds}"
    return response


def _uid_of_path(text: str) -> uuid.UUID:
    """Returns the uid in a path. Raises NotFound if the text is not a UUID."""
    try:
        return parse_uid(text)
    except ValueError:
        raise transaction_not_found(text[:200]) from None
