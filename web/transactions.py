"""PUT, GET and POST of a transaction: the status code of an answer tells the transaction's state."""

import uuid
from typing import Final

from flask import Blueprint, Response, g, request
from flask import Request as HttpRequest

from shared.errors import PaymentsError, transaction_not_found
from shared.history import get_transaction
from shared.queries.transactions import Request, Transaction
from shared.showing import describe_rejection, show_transaction
from shared.status import Status
from web.answers import JsonAnswer
from web.bodies import read_json
from web.intake import intake
from web.loop import in_thread, on_loop
from web.problems import problem
from web.requests import preferred_wait
from web.schemas import NewTransaction, parse_uid
from web.waiting import wait_if_preferred

blueprint = Blueprint("transactions", __name__)

RETRY_SECONDS: Final = 1


@blueprint.put("/api/transaction/")
@on_loop
def put_transaction() -> Response:
    http: HttpRequest = request._get_current_object()  # type: ignore[attr-defined] # each use of a proxy costs
    asked = read_json(http, NewTransaction)
    (reply,) = intake.submit(
        [Request(asked.uid, asked.user_id, asked.type, asked.amount, asked.timestamp, g.request_id, g.arrived)]
    )
    if isinstance(reply, PaymentsError):
        raise reply
    seconds = preferred_wait(http)
    transaction, waited = wait_if_preferred(reply.transaction, seconds)
    response = _answer_by_state(transaction)
    if reply.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return _tell_preference(response, seconds, waited)


@blueprint.route("/api/transaction/<uid>", methods=["GET", "POST"])
@on_loop
def look_up(uid: str) -> Response:
    seconds = preferred_wait(request)
    transaction, waited = wait_if_preferred(in_thread(get_transaction, _uid_of_path(uid)), seconds)
    tag = f"{transaction.uid}:{transaction.status.lower()}"  # nothing else of it ever changes
    if request.method != "POST" and request.if_none_match.contains_weak(tag):
        response = Response(status=304)
    else:
        response = JsonAnswer(show_transaction(transaction))
    response.set_etag(tag)
    return _tell_preference(response, seconds, waited)


def _answer_by_state(transaction: Transaction) -> Response:
    shown = show_transaction(transaction)
    if transaction.status == Status.REJECTED:
        return problem(
            409,
            str(transaction.reason),
            describe_rejection(transaction),
            transaction=shown,
        )
    response = JsonAnswer(shown)
    response.headers.add("Location", f"/api/transaction/{transaction.uid}")
    if transaction.status == Status.PENDING:
        response.status_code = 202
        response.headers.add("Retry-After", str(RETRY_SECONDS))
    return response


def _tell_preference(response: Response, seconds: int | None, waited: bool) -> Response:
    if waited:
        response.headers["Preference-Applied"] = f"wait={seconds}"
    return response


def _uid_of_path(text: str) -> uuid.UUID:
    """What is no uid names no transaction."""
    try:
        return parse_uid(text)
    except ValueError:
        raise transaction_not_found(text[:200]) from None
