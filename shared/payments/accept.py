"""Accepts a list of requests in one statement and one commit, with a reply for each. A single PUT is a list of one.

The rows are committed with synchronous_commit on, so the view may answer an accepted request with a 2xx.
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
from shared.payments.model import Transaction, TransactionRequest
from shared.payments.queries import transactions


class Accepted(NamedTuple):
    """A stored transaction. `replayed`: an earlier request had stored it."""

    transaction: Transaction
    replayed: bool


Reply = Accepted | PaymentsError

log = get_logger("accept")


def accept(requests: Sequence[TransactionRequest], *, bulk: bool = False) -> list[Reply]:
    """Accepts new requests and recognises repeats. Returns one reply for each request, in order.

    `bulk` marks lists: their rows settle after single requests, but each user's rows stay in order.

    Raises the error of SQLAlchemy if the database does not answer. Then the result is unknown, and the same list may be
    sent again.
    """
    with autocommit() as connection:
        new, ahead = transactions.insert_pending(connection, requests, bulk=bulk)
        # A second statement has a new snapshot (MVCC). That of the first one misses a repeat whose original was
        # uncommitted at its start.
        stored_by_uid = {**new, **_find(connection, [request for request in requests if request.uid not in new])}
    metrics.ACCEPTED.inc(len(new))
    new_uids = set(new)
    return [_reply(request, stored_by_uid, new_uids, is_ahead=n in ahead) for n, request in enumerate(requests)]


def recognise(requests: Sequence[TransactionRequest], retry_seconds: int = 1) -> list[Reply]:
    """Returns the replies of `accept` without accepting anything: a new request gets Unavailable (backlog_full)."""
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
    """Returns the replies of `take`, which is `accept` or `recognise`. A request on which it fails gets internal_error.

    Halving finds the failing requests, so that the others are accepted in few commits. Raises the error if it is an
    infrastructure error, comes after the deadline (by time.monotonic()), or follows `max_failing` failing requests.
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
    """Returns whether the request was refused although its uid was free.

    Then no transaction has the uid, or a later request of this list has it. The first acceptable request of a list gets
    the uid. So an earlier one with other content was not acceptable by itself.
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
    """Returns the reply for one request. The order of checks is part of the contract: a known uid before the user.

    Must be called in the order of the list: `new_uids` are the new uids that no earlier request of the list took.
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
    new_uids.discard(request.uid)  # a second request with this uid is a repeat of the first
    return Accepted(stored, replayed)


def differing_fields(request: TransactionRequest, stored: Transaction) -> list[str]:
    """Returns the names of the request's fields whose values differ from the stored transaction."""
    pairs = {
        "user_id": (request.user_id, stored.user_id),
        "type": (request.type, stored.type),
        "amount": (request.amount, stored.amount),
        "timestamp": (request.requested_at, stored.requested_at),
    }
    return [name for name, (requested, existing) in pairs.items() if requested != existing]
