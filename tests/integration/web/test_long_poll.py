"""Who waits for a transaction is woken by the worker's hint, and without it by asking now and then."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any

import pytest
from flask.testing import FlaskClient
from redis import RedisError

from shared.payments import doorbell
from shared.payments.accept import accept
from shared.payments.batch import settle_batch
from shared.payments.model import LANES, Transaction
from shared.payments.settle import settle_lanes, work_lanes
from tests.integration.bells import forget
from tests.integration.factories import accepted, deposit, new_user, new_users, recorded_statements
from tests.integration.planted_bug import UNLUCKY
from tests.kit.waiting import wait_until
from web.app import create_app
from web.commit import long_poll
from web.commit.long_poll import LongPoll

pytestmark = pytest.mark.integration

LONG_SECONDS = 600.0  # longer than any test


@pytest.fixture(autouse=True)
def own_bell(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield
    monkeypatch.undo()
    forget()


@pytest.fixture
def only_hints(monkeypatch: pytest.MonkeyPatch, broker_url: str) -> None:
    """Nobody asks by himself."""
    for name in ("MIN_POLL_INTERVAL_SECONDS", "HINTED_POLL_INTERVAL_SECONDS", "MAX_POLL_INTERVAL_SECONDS"):
        monkeypatch.setattr(long_poll, name, LONG_SECONDS)


def pending() -> Transaction:
    (taken,) = accepted(deposit(new_user(), 1))
    return taken.transaction


@contextmanager
def waits(room: LongPoll, transaction: Transaction) -> Iterator[Future[tuple[bool, Transaction | None]]]:
    """The outcome of a wait, which has begun and will end when the room is closed."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(room.wait, transaction, LONG_SECONDS)
        try:
            wait_until(lambda: room._waiters, "somebody waits")
            yield future
        finally:
            room.close()


@pytest.mark.usefixtures("only_hints")
def test_the_hint_of_a_worker_wakes_who_waits() -> None:
    room, transaction = LongPoll(), pending()
    with waits(room, transaction) as future:
        wait_until(lambda: room._is_subscribed, "hints are heard")
        settle_lanes([transaction.lane])
        waited, final = future.result(20)
    assert waited
    assert final
    assert (final.uid, final.status, final.balance_after) == (transaction.uid, "COMPLETED", 1)


@pytest.mark.usefixtures("only_hints")
def test_only_a_hint_of_its_lane_causes_a_query() -> None:
    room, transaction = LongPoll(), pending()
    with waits(room, transaction) as future, recorded_statements() as sent:
        wait_until(lambda: room._is_subscribed, "hints are heard")
        doorbell.publish_settled([(transaction.lane + 1) % LANES])
        doorbell.publish_settled([transaction.lane])
        wait_until(lambda: sent, "Postgres is asked")
        assert len(sent) == 1
        assert not future.done()


@pytest.mark.parametrize("name", ["MIN_POLL_INTERVAL_SECONDS", "HINTED_POLL_INTERVAL_SECONDS"])
def test_without_a_hint_it_asks_by_itself(name: str, request: pytest.FixtureRequest) -> None:
    """No broker at all; or it is there, and a hint is lost."""
    if name == "HINTED_POLL_INTERVAL_SECONDS":
        request.getfixturevalue("broker_url")
    room, transaction = LongPoll(), pending()
    with waits(room, transaction) as future:
        if name == "HINTED_POLL_INTERVAL_SECONDS":
            wait_until(lambda: room._is_subscribed, "hints are heard")
        settle_batch([transaction.lane])  # whoever settles so tells nobody
        waited, final = future.result(20)
    assert (waited, final and final.status) == (True, "COMPLETED")


def test_hints_are_heard_again_when_the_broker_is_back(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_poll, "RESUBSCRIBE_DELAY_SECONDS", 0.01)
    monkeypatch.setenv("BROKER_URL", "redis://127.0.0.1:1/0")
    forget()
    room = LongPoll()
    with waits(room, pending()):
        monkeypatch.setenv("BROKER_URL", broker_url)
        forget()
        wait_until(lambda: room._is_subscribed, "hints are heard")


@pytest.fixture
def hints(broker_url: str) -> list[set[int]]:
    """The lanes of each hint, as it comes."""
    found: list[set[int]] = []

    def hear() -> None:
        with suppress(RedisError):  # the broker ends with the test
            found.extend(doorbell.subscribe_settled())

    Thread(target=hear, daemon=True).start()
    wait_until(lambda: found, "hints are heard")
    return found


@pytest.mark.parametrize("how", ["batch", "drain", "parts"])
def test_each_way_of_settling_gives_the_hint(
    how: str, hints: list[set[int]], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    (user,) = new_users(1, lane=5)
    if how == "drain":
        monkeypatch.setattr(settle_batch, "__defaults__", (None, 2))
        accept([deposit(user, 1) for _ in range(4)], bulk=True)
    elif how == "parts":
        request.getfixturevalue("bug")
        accepted(deposit(user, UNLUCKY), deposit(new_users(1, lane=5)[0], 1))
    else:
        accepted(deposit(user, 1))
    work_lanes([5])
    commits = 2 if how == "drain" else 1  # the first finds that a list waits
    wait_until(lambda: hints.count({5}) >= commits, "the hint of each commit has come")


def test_junk_in_the_channel_is_no_hint() -> None:
    read: Callable[[bytes], set[int]] = doorbell._read_lanes
    assert read(b"3 11") == {3, 11}
    assert read(b"\xff x -1 99999999999999 1e3") == set()


@pytest.fixture
def client() -> FlaskClient:
    return create_app().test_client()


def ask(client: FlaskClient, transaction: Transaction) -> Any:
    return client.get(f"/api/transaction/{transaction.uid}", headers={"Prefer": "wait=30"})


def test_beyond_those_who_may_wait_the_answer_comes_at_once(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_poll, "MAX_WAITERS", 0)
    answer = ask(client, pending())
    assert (answer.status_code, answer.json["status"]) == (200, "PENDING")
    assert "Preference-Applied" not in answer.headers


def test_waiting_requests_are_answered_at_shutdown(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    room, transaction = LongPoll(), pending()
    monkeypatch.setattr(long_poll, "long_poll", room)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(ask, client, transaction)
        wait_until(lambda: room._waiters, "somebody waits")
        room.close()
        assert "Preference-Applied" not in asked.result(10).headers
    assert "Preference-Applied" not in ask(client, transaction).headers
