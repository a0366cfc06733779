"""Group commit: what waits is accepted together, what spoils the statement is told alone, nobody waits for ever."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, text

from shared.database import transaction
from shared.errors import PaymentsError, Unavailable
from shared.payments.accept import Accepted, Reply
from shared.payments.model import TransactionRequest, Type
from shared.payments.queries.transactions import find_transactions
from tests.integration.factories import await_waiter, deposit, new_user, outsider, recorded_statements, states
from tests.kit.waiting import wait_until
from web.commit import group_commit as module
from web.commit.group_commit import GroupCommit

pytestmark = pytest.mark.integration


def failing_request() -> TransactionRequest:
    """What no valid request is: Postgres has no integer for this user."""
    return TransactionRequest(uuid4(), 2**70, Type.DEPOSIT, 1, None)


def is_known(request: TransactionRequest) -> bool:
    with transaction() as connection:
        return bool(find_transactions(connection, [request.uid]))


class Kept:
    """An intake whose commit thread is held up by a lock, so that requests gather behind it."""

    def __init__(self, threads: ThreadPoolExecutor, other: Connection, first: TransactionRequest) -> None:
        self.intake = GroupCommit()
        self._threads = threads
        other.execute(text("LOCK TABLE transactions IN SHARE ROW EXCLUSIVE MODE"))
        self.submit(first)
        await_waiter(other)

    def submit(self, request: TransactionRequest) -> Future[list[Reply]]:
        return self._threads.submit(self.intake.submit, [request])

    def gather(self, requests: Sequence[TransactionRequest]) -> list[Future[list[Reply]]]:
        futures = [self.submit(request) for request in requests]
        wait_until(lambda: len(self.intake._waiting) == len(requests), "all wait", 2, 0.001)
        return futures


def test_what_waits_while_a_commit_is_under_way_is_one_commit() -> None:
    user = new_user()
    requests = [deposit(user, amount) for amount in range(1, 31)]
    with ThreadPoolExecutor(40) as threads, recorded_statements() as sent:
        with outsider() as other:
            kept = Kept(threads, other, deposit(user, 100))
            waiting = kept.gather(requests)
        replies = [future.result(5)[0] for future in waiting]
    assert [r.transaction.uid for r in replies if isinstance(r, Accepted)] == [r.uid for r in requests]
    assert sum("INSERT INTO transactions" in statement for statement, _ in sent) == 2


def test_a_request_that_spoils_the_statement_hears_of_it_alone() -> None:
    user = new_user()
    good = [deposit(user, 1) for _ in range(31)]
    with ThreadPoolExecutor(40) as threads, recorded_statements() as sent:
        with outsider() as other:
            kept = Kept(threads, other, deposit(user, 100))
            *fine, bad = kept.gather([*good, failing_request()])
        assert all(isinstance(future.result(5)[0], Accepted) for future in fine)
        (reply,) = bad.result(5)
    assert isinstance(reply, PaymentsError)
    assert reply.code == "internal_error"
    assert set(states(*good)) == {"PENDING"}
    tries = sum("INSERT INTO transactions" in statement for statement, _ in sent)
    assert tries <= 1 + 1 + 2 * 5, "the first one, all together, then halves"


def test_beyond_the_queues_bound_the_answer_comes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_REQUESTS", 3)
    user = new_user()
    refused = deposit(user, 1)
    with ThreadPoolExecutor(10) as threads, outsider() as other:
        kept = Kept(threads, other, deposit(user, 100))
        kept.gather([deposit(user, 1) for _ in range(3)])
        with pytest.raises(Unavailable) as raised:
            kept.intake.submit([refused])
        assert raised.value.code == "overloaded"
        assert len(kept.intake._waiting) == 3, "the commit that they wait for is still under way"
        other.rollback()
    assert not is_known(refused)


def test_who_has_given_up_is_not_accepted_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told "not known", both would be right; but what nobody waits for any more need not be done."""
    monkeypatch.setattr(module, "COMMIT_TIMEOUT_SECONDS", 0.2)
    user = new_user()
    abandoned = deposit(user, 1)
    with ThreadPoolExecutor(10) as threads:
        with outsider() as other:
            kept = Kept(threads, other, deposit(user, 100))
            (waiting,) = kept.gather([abandoned])
            assert isinstance(waiting.exception(2), Unavailable)
        assert isinstance(kept.intake.submit([after := deposit(user, 1)])[0], Accepted)
    assert states(after) == ["PENDING"]
    assert not is_known(abandoned)


class Mortal(GroupCommit):
    """Its commit thread dies with the first batch, as of a lack of memory in the worst place."""

    def __init__(self) -> None:
        super().__init__()
        self.died = threading.Event()

    def _commit(self, batch: Any) -> None:
        if not self.died.is_set():
            self.died.set()
            raise SystemExit
        super()._commit(batch)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_commit_thread_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "COMMIT_TIMEOUT_SECONDS", 0.5)
    user = new_user()
    lost, next_one = deposit(user, 1), deposit(user, 1)
    intake = Mortal()
    with pytest.raises(Unavailable) as raised:
        intake.submit([lost])
    assert raised.value.code == "database_unavailable"
    assert intake.died.is_set()
    assert isinstance(intake.submit([next_one])[0], Accepted)
    assert not is_known(lost)
    assert states(next_one) == ["PENDING"]
