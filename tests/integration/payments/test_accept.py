"""Accepting: what is new is committed, what is known is recognised, what is refused leaves no trace."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta, timezone
from threading import Barrier
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from shared.errors import Conflict, Invalid, NotFound, Unavailable
from shared.payments.accept import Accepted, Reply, accept, recognise
from shared.payments.model import Status, Transaction, TransactionRequest
from shared.payments.queries import transactions
from shared.payments.reads import get_balance, get_transaction
from tests.integration.factories import (
    accepted,
    ago,
    await_waiter,
    clock,
    deposit,
    new_user,
    new_users,
    outsider,
    settled,
    states,
    stored,
    withdrawal,
)

pytestmark = pytest.mark.integration

NO_USER = 2**62


def at_once(*calls: Callable[[], list[Reply]]) -> list[list[Reply]]:
    """Call them all at the same time, each in a thread."""
    barrier = Barrier(len(calls))

    def call(function: Callable[[], list[Reply]]) -> list[Reply]:
        barrier.wait()
        return function()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(call, calls))


def test_a_new_transaction_is_pending_and_not_replayed() -> None:
    request = deposit(new_user(), 100_00)
    (answer,) = accept([request])
    assert isinstance(answer, Accepted)
    assert not answer.replayed
    assert answer.transaction == get_transaction(request.uid)
    assert answer.transaction[:8] == (*request[:5], Status.PENDING, None, answer.transaction.accepted_at)
    assert abs(answer.transaction.accepted_at - clock()) < timedelta(seconds=5)


def test_an_empty_list_is_accepted() -> None:
    assert accept([]) == []


def test_a_repeat_answers_the_same_transaction() -> None:
    request = deposit(new_user(), 100_00, ago(days=1))
    (first,), (again,) = accepted(request), accepted(request)
    assert again == Accepted(first.transaction, replayed=True)


def test_a_repeat_of_a_final_transaction_answers_its_outcome() -> None:
    user = new_user()
    settled(deposit(user, 5), request := withdrawal(user, 6))
    (again,) = accepted(request)
    assert again.replayed
    assert again.transaction.reason == "insufficient_funds"


def test_a_repeat_within_a_list_is_a_repeat_of_the_first() -> None:
    request = deposit(new_user(), 100_00)
    assert [answer.replayed for answer in accepted(request, request, request)] == [False, True, True]


def test_a_uid_reused_within_a_list_is_refused() -> None:
    user = new_user()
    first, second, third = accept([deposit(user, 1, uid=(uid := uuid4())), deposit(user, 2, uid=uid), deposit(user, 3)])
    assert isinstance(first, Accepted)
    assert first.transaction.amount == 1
    assert isinstance(second, Conflict)
    assert isinstance(third, Accepted)


def test_a_uid_is_the_same_in_either_case() -> None:
    user = new_user()
    accepted(deposit(user, 5, uid=UUID("abcdefab-0000-4000-8000-" + (tail := uuid4().hex[:12]))))
    (again,) = accepted(deposit(user, 5, uid=UUID("ABCDEFAB-0000-4000-8000-" + tail.upper())))
    assert again.replayed


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"amount": 6}, ["amount"]),
        ({"type": "WITHDRAW"}, ["type"]),
        ({"user_id": NO_USER}, ["user_id"]),  # the uid is judged before the user
        ({"requested_at": None}, ["timestamp"]),
        ({"amount": 6, "user_id": NO_USER, "requested_at": None}, ["user_id", "amount", "timestamp"]),
    ],
)
def test_a_reused_uid_is_refused_with_the_field_names(changes: dict[str, object], fields: list[str]) -> None:
    request = deposit(new_user(), 5, ago(days=1))
    accepted(request)
    (answer,) = accept([request._replace(**changes)])  # type: ignore[arg-type]
    assert isinstance(answer, Conflict)
    assert answer.code == "uid_reused"
    assert [field.field for field in answer.fields] == fields


def test_the_same_instant_in_another_form_is_a_repeat() -> None:
    request = deposit(new_user(), 5, ago(days=1))
    accepted(request)
    assert request.requested_at is not None
    elsewhere = request.requested_at.astimezone(timezone(timedelta(hours=9)))
    assert accepted(request._replace(requested_at=elsewhere))[0].replayed


def test_another_request_id_is_the_same_content() -> None:
    request = deposit(new_user(), 5)
    accepted(request._replace(request_id='a "quoted" \\ {one}'))
    assert accepted(request._replace(request_id="two"))[0].replayed


def test_an_unknown_user_leaves_the_uid_free() -> None:
    uid = uuid4()
    (refused,) = accept([deposit(NO_USER, 5, uid=uid)])
    assert isinstance(refused, NotFound)
    assert refused.code == "user_not_found"
    assert accepted(deposit(new_user(), 5, uid=uid))[0].replayed is False


def test_a_refused_request_does_not_spoil_the_rest_of_its_list() -> None:
    user = new_user()
    first, refused, last = accept([deposit(user, 1), deposit(NO_USER, 2), deposit(user, 3)])
    assert isinstance(first, Accepted)
    assert isinstance(refused, NotFound)
    assert isinstance(last, Accepted)


def test_a_timestamp_ahead_is_refused_by_the_clock_of_postgres() -> None:
    user = new_user()
    near, far = accept([deposit(user, 1, ago(seconds=-58)), deposit(user, 1, ago(seconds=-62))])
    assert isinstance(near, Accepted)
    assert isinstance(far, Invalid)
    assert [field.field for field in far.fields] == ["timestamp"]


def test_a_uid_of_a_refused_request_can_be_used_again() -> None:
    user, uid, ahead = new_user(), uuid4(), ago(seconds=-90)
    good = deposit(user, 1, uid=uid)
    unknown, future, first, repeat, late_unknown, other = accept(
        [
            *(good._replace(user_id=NO_USER), good._replace(requested_at=ahead), good, good),
            *(good._replace(user_id=NO_USER), good._replace(amount=2)),
        ]
    )
    assert isinstance(unknown, NotFound)
    assert isinstance(future, Invalid)
    assert isinstance(first, Accepted)
    assert isinstance(repeat, Accepted)
    assert (first.replayed, repeat.replayed) == (False, True)
    assert isinstance(late_unknown, Conflict), "a known uid is judged before the user"
    assert isinstance(other, Conflict)


def test_a_future_timestamp_is_not_taken_for_an_unknown_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = transactions.find_transactions

    def late(*args: Any) -> dict[UUID, Transaction]:
        time.sleep(0.4)
        return find(*args)

    monkeypatch.setattr(transactions, "find_transactions", late)
    (answer,) = accept([deposit(new_user(), 1, ago(seconds=-60.2))])
    assert isinstance(answer, Invalid)


def test_acceptance_follows_the_order_sent_not_the_order_of_uids() -> None:
    user = new_user()
    uids = sorted((uuid4() for _ in range(30)), reverse=True)
    requests = [deposit(user, number + 1, uid=uid) for number, uid in enumerate(uids)]
    answers = accepted(*requests)
    assert [a.transaction.accept_order for a in answers] == sorted(a.transaction.accept_order for a in answers)
    settled(*requests)
    assert [t.balance_after for t in stored(*requests)] == [n * (n + 1) // 2 for n in range(1, 31)]


def test_one_uid_sent_200_times_at_once_moves_money_once() -> None:
    user = new_user()
    request = deposit(user, 5)
    answers = [answer for (answer,) in at_once(*[lambda: accept([request])] * 200)]
    assert sum(isinstance(answer, Accepted) and not answer.replayed for answer in answers) == 1
    assert all(isinstance(answer, Accepted) for answer in answers)
    settled(request)
    assert get_balance(user).balance == 5


def test_concurrent_uid_reuse_keeps_the_first_content() -> None:
    user, uid = new_user(), uuid4()
    answers = at_once(*[lambda n=n: accept([deposit(user, n, uid=uid)]) for n in range(1, 21)])
    kinds = [type(answer) for (answer,) in answers]
    assert kinds.count(Accepted) == 1
    assert kinds.count(Conflict) == 19


def test_batches_in_opposite_orders_do_not_deadlock() -> None:
    users = new_users(2)
    for _ in range(50):
        batch = [deposit(users[number % 2], 1) for number in range(60)]
        forth, back = at_once(lambda: accept(batch), lambda: accept(batch[::-1]))  # noqa: B023
        fresh = [answer for answer in forth + back if isinstance(answer, Accepted) and not answer.replayed]
        assert len(fresh) == 60


def test_a_repeat_does_not_wait_for_the_settling_of_its_row() -> None:
    request = deposit(new_user(), 5)
    accepted(request)
    with outsider() as settler:
        settler.execute(text("UPDATE transactions SET attempts = 1 WHERE uid = :uid"), {"uid": str(request.uid)})
        answers = accepted(request, other := deposit(request.user_id, 6))  # whoever waits for the row, fails after 2 s
    assert [answer.replayed for answer in answers] == [True, False]
    assert states(other) == ["PENDING"]


def insert_by_hand(request: TransactionRequest) -> str:
    return f"""
        INSERT INTO transactions (uid, user_id, type, amount, accept_order, accepted_at)
        VALUES ('{request.uid}', {request.user_id}, '{request.type}', {request.amount},
                nextval('transactions_accept_order_seq'), clock_timestamp())
    """


def test_a_repeat_committed_meanwhile_is_found() -> None:
    request = deposit(new_user(), 5)
    with outsider() as first, ThreadPoolExecutor(1) as thread:
        first.execute(text(insert_by_hand(request)))
        second = thread.submit(accept, [request])
        await_waiter(first)
        first.commit()
        (answer,) = second.result()
    assert isinstance(answer, Accepted)
    assert answer.replayed


def test_a_repeat_of_what_is_rolled_back_is_new() -> None:
    request = deposit(new_user(), 5)
    with outsider() as first, ThreadPoolExecutor(1) as thread:
        first.execute(text(insert_by_hand(request)))
        second = thread.submit(accept, [request])
        await_waiter(first)
        first.rollback()
        (answer,) = second.result()
    assert isinstance(answer, Accepted)
    assert not answer.replayed


def test_with_the_backlog_full_only_known_ones_are_judged() -> None:
    user = new_user()
    known, new = deposit(user, 5), deposit(user, 6)
    accepted(known)
    first, other, reused = recognise([known, new, known._replace(amount=9)])
    assert isinstance(first, Accepted)
    assert first.replayed
    assert isinstance(other, Unavailable)
    assert other.code == "backlog_full"
    assert isinstance(reused, Conflict)
    assert accepted(new)[0].replayed is False, "it left no trace"
