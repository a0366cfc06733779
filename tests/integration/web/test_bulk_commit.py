"""Committing a list: one commit; a row that spoils the statement is told alone; lists neither wait for ever nor lock."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DataError, OperationalError

from shared.database import transaction
from shared.errors import PaymentsError, Unavailable
from shared.payments.accept import Accepted
from shared.payments.model import TransactionRequest, Type
from shared.payments.queries.transactions import find_transactions
from tests.integration.factories import deposit, new_user, outsider, recorded_statements, states
from web.commit.bulk_commit import MAX_FAILING_ROWS, MAX_LIST_COMMITS, submit

pytestmark = pytest.mark.integration


def failing_request() -> TransactionRequest:
    """What no valid request is: Postgres has no integer for this user."""
    return TransactionRequest(uuid4(), 2**70, Type.DEPOSIT, 1, None)


def test_a_list_is_one_statement_and_one_commit() -> None:
    user = new_user()
    requests = [deposit(user, amount) for amount in range(1, 1001)]
    submit(requests[:1])  # the backlog has been read
    with recorded_statements() as sent:
        replies = submit(requests[1:])
    assert [r.transaction.uid for r in replies if isinstance(r, Accepted)] == [r.uid for r in requests[1:]]
    assert sum("INSERT INTO transactions" in statement for statement, _ in sent) == 1
    orders = [r.transaction.accept_order for r in replies if isinstance(r, Accepted)]
    assert orders == sorted(orders)


def test_two_lists_in_opposite_orders_do_not_deadlock() -> None:
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
    replies = submit([*good[:7], failing_request(), *good[7:19], failing_request(), good[19]])
    failed = [reply for reply in replies if isinstance(reply, PaymentsError)]
    assert [replies.index(reply) for reply in failed] == [7, 20]
    assert {reply.code for reply in failed} == {"internal_error"}
    assert set(states(*good)) == {"PENDING"}
    orders = [reply.transaction.accept_order for reply in replies if isinstance(reply, Accepted)]
    assert orders == sorted(orders)


def test_where_every_row_fails_it_is_no_fault_of_the_rows() -> None:
    with recorded_statements() as sent, pytest.raises(DataError):
        submit([failing_request() for _ in range(1000)])
    assert len(sent) < 10 * MAX_FAILING_ROWS


def test_a_list_behind_hanging_lists_gets_an_answer_in_time() -> None:
    user = new_user()
    requests = [deposit(user, 1) for _ in range(4 * MAX_LIST_COMMITS)]

    def outcome(request: TransactionRequest) -> str:
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
        "failed": 2 * MAX_LIST_COMMITS,
        "database_unavailable": MAX_LIST_COMMITS,  # under way when patience ended
        "overloaded": MAX_LIST_COMMITS,
    }
    turned_away = [request for request in requests if told[request] == "overloaded"]
    submit(requests[:1])  # after all that were waiting
    with transaction() as connection:
        assert find_transactions(connection, [request.uid for request in turned_away]).keys() <= {requests[0].uid}
