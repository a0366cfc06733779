"""Committing a list: one commit; a row that spoils the statement is told alone; lists neither wait for ever nor lock."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DataError, OperationalError

from shared.accepting import Accepted
from shared.database import transaction
from shared.errors import PaymentsError, Unavailable
from shared.model import Request, Type
from shared.queries.transactions import find_transactions
from tests.integration.given import deposit, heard, new_user, outsider, states
from web.bulk import MAX_FAILING, MOST_COMMITS, submit

pytestmark = pytest.mark.integration


def spoilt() -> Request:
    """What no valid request is: Postgres has no integer for this user."""
    return Request(uuid4(), 2**70, Type.DEPOSIT, 1, None)


def test_a_list_is_one_statement_and_one_commit() -> None:
    user = new_user()
    requests = [deposit(user, amount) for amount in range(1, 1001)]
    submit(requests[:1])  # the backlog has been read
    with heard() as sent:
        replies = submit(requests[1:])
    assert [r.transaction.uid for r in replies if isinstance(r, Accepted)] == [r.uid for r in requests[1:]]
    assert sum("INSERT INTO transactions" in statement for statement, _ in sent) == 1
    orders = [r.transaction.accept_order for r in replies if isinstance(r, Accepted)]
    assert orders == sorted(orders)


def test_two_lists_with_the_same_uids_in_opposite_orders_do_not_deadlock() -> None:
    user = new_user()
    submit([deposit(user, 1)])  # the backlog has been read
    with ThreadPoolExecutor(2) as threads:
        for _ in range(5):
            requests = [deposit(user, 1) for _ in range(2000)]
            one, other = threads.map(submit, (requests, requests[::-1]))  # a deadlock raises in one of them
            replies = [*one, *other]
            assert sum(isinstance(reply, Accepted) and reply.replayed for reply in replies) == len(requests)


def test_a_row_that_spoils_the_statement_is_told_alone() -> None:
    user = new_user()
    good = [deposit(user, 1) for _ in range(20)]
    replies = submit([*good[:7], spoilt(), *good[7:19], spoilt(), good[19]])
    failed = [reply for reply in replies if isinstance(reply, PaymentsError)]
    assert [replies.index(reply) for reply in failed] == [7, 20]
    assert {reply.code for reply in failed} == {"internal_error"}
    assert set(states(*good)) == {"PENDING"}
    orders = [reply.transaction.accept_order for reply in replies if isinstance(reply, Accepted)]
    assert orders == sorted(orders)


def test_where_every_row_fails_it_is_no_fault_of_the_rows() -> None:
    with heard() as sent, pytest.raises(DataError):
        submit([spoilt() for _ in range(1000)])
    assert len(sent) < 10 * MAX_FAILING


def test_who_waits_behind_lists_that_hang_is_told_in_time_what_became_of_his() -> None:
    user = new_user()
    requests = [deposit(user, 1) for _ in range(4 * MOST_COMMITS)]

    def outcome(request: Request) -> str:
        began = time.monotonic()
        try:
            submit([request])
        except (Unavailable, OperationalError) as error:
            assert time.monotonic() - began < 15  # the lock is never released
            return error.code if isinstance(error, Unavailable) else "failed"
        return "accepted"

    with outsider() as other, ThreadPoolExecutor(len(requests)) as threads:
        other.execute(text("LOCK TABLE users IN ACCESS EXCLUSIVE MODE"))  # an insert waits 2 s for it, and fails
        told = dict(zip(requests, threads.map(outcome, requests), strict=True))
    assert Counter(told.values()) == {
        "failed": 2 * MOST_COMMITS,
        "database_unavailable": MOST_COMMITS,  # under way when patience ended
        "overloaded": MOST_COMMITS,
    }
    turned_away = [request for request in requests if told[request] == "overloaded"]
    submit(requests[:1])  # after all that were waiting
    with transaction() as connection:
        assert find_transactions(connection, [request.uid for request in turned_away]).keys() <= {requests[0].uid}
