"""Accept a list of requests: one statement, one commit, an answer for each. A single PUT is a list of one.

What this returns as new or known may be answered with a 2xx: the rows are committed, with synchronous_commit on.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from shared import metrics
from shared.database import autocommit, is_infrastructure_error
from shared.errors import PaymentsError, Unavailable, invalid_field, uid_reused, user_not_found
from shared.logs import get_logger
from shared.model import Transaction, TransactionRequest
from shared.queries import transactions


class Accepted(NamedTuple):
    """A transaction that stands in the books; `replayed` where an earlier request had put it there."""

    transaction: Transaction
    replayed: bool


Reply = Accepted | PaymentsError

log = get_logger("accepting")


def accept(requests: Sequence[TransactionRequest], *, bulk: bool = False) -> list[Reply]:
    """Accept what is new, recognise what is known, refuse the rest: one reply per request, in order.

    `bulk` is for lists: their rows are settled after those of single requests, in each user's order all the same.

    Raises what SQLAlchemy raises where the database does not answer: then it is not known what was accepted,
    and sending the same list again is right.
    """
    with autocommit() as connection:
        new, ahead = transactions.insert_pending(connection, requests, bulk=bulk)
        # A statement of its own, with a snapshot of its own: the first one cannot see a repeat that was
        # uncommitted when it began.
        stored_by_uid = {**new, **_find(connection, [request for request in requests if request.uid not in new])}
    metrics.ACCEPTED.inc(len(new))
    new_uids = set(new)
    return [_reply(request, stored_by_uid, new_uids, is_ahead=n in ahead) for n, request in enumerate(requests)]


def recognise(requests: Sequence[TransactionRequest], retry_seconds: int = 1) -> list[Reply]:
    """As `accept` while nothing new is taken in: known ones are judged, any other is told when to come back."""
    with autocommit() as connection:
        stored_by_uid = _find(connection, requests)
    detail = "Too many transactions wait to be settled. Send it again later."
    busy = Unavailable("backlog_full", detail, retry_seconds=retry_seconds)
    return [_reply(r, stored_by_uid, set()) if r.uid in stored_by_uid else busy for r in requests]


def isolate_failing(
    take: Callable[[Sequence[TransactionRequest]], list[Reply]],
    requests: Sequence[TransactionRequest],
    *,
    deadline: float,
    max_failing: int,
) -> list[Reply]:
    """Returns the replies of `take`, which is `accept` or `recognise`. The requests that it fails on get internal_error.

    They are found by halving, so that the others are accepted in few commits. Raises the error where it is not one
    request's: the machinery's, one after the deadline (by time.monotonic()), or one after `max_failing` others.
    """
    failing = 0

    def take_part(part: Sequence[TransactionRequest]) -> list[Reply]:
        nonlocal failing
        try:
            return take(part)
        except Exception as error:
            if is_infrastructure_error(error) or time.monotonic() > deadline or failing >= max_failing:
                raise
            if len(part) > 1:
                half = len(part) // 2
                return take_part(part[:half]) + take_part(part[half:])
            failing += 1
            (request,) = part
            log.error("request not accepted", exc_info=error, uid=str(request.uid), request_id=request.request_id)
            return [PaymentsError("internal_error", "The service failed. The request may be sent again as it was.")]

    return take_part(requests)


def _find(connection: Connection, requests: Sequence[TransactionRequest]) -> dict[UUID, Transaction]:
    return transactions.find_transactions(connection, [r.uid for r in requests]) if requests else {}


def _is_refused(
    request: TransactionRequest, stored_by_uid: Mapping[UUID, Transaction], new_uids: Collection[UUID]
) -> bool:
    """Whether the request was not inserted, and its uid was free: nobody has it, or a later request of this list has.

    The first request of a list that can be accepted has the uid, so one before it with other content was refused for
    its own sake: had it the same content, it would have been accepted.
    """
    stored = stored_by_uid.get(request.uid)
    return stored is None or (request.uid in new_uids and bool(differing_fields(request, stored)))


def _reply(
    request: TransactionRequest,
    stored_by_uid: Mapping[UUID, Transaction],
    new_uids: set[UUID],
    *,
    is_ahead: bool = False,
) -> Reply:
    """The order is part of the contract: a known uid is judged before the user is.

    To be called in the order of the list: `new_uids` are the uids whose own request is still to come.
    """
    stored = stored_by_uid.get(request.uid)
    if stored is None or _is_refused(request, stored_by_uid, new_uids):
        if is_ahead:
            return invalid_field("timestamp", "must not be more than 60 seconds ahead")
        return user_not_found(request.user_id)
    differing = differing_fields(request, stored)
    if differing:
        return uid_reused(request.uid, differing)
    replayed = request.uid not in new_uids
    new_uids.discard(request.uid)  # a second one in the same list is a repeat of the first
    return Accepted(stored, replayed)


def differing_fields(request: TransactionRequest, stored: Transaction) -> list[str]:
    """The fields, by their names in the request, in which the two differ in value."""
    pairs = {
        "user_id": (request.user_id, stored.user_id),
        "type": (request.type, stored.type),
        "amount": (request.amount, stored.amount),
        "timestamp": (request.requested_at, stored.requested_at),
    }
    return [name for name, (requested, existing) in pairs.items() if requested != existing]
