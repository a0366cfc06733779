"""A process is killed, fails, loses its connection or stalls at every boundary of accepting and of settling.

Whatever it did, the repeat and the next worker bring the books to the same end: each transaction once.
"""

import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from shared import database
from shared.database import is_infrastructure_error
from shared.payments.accept import Accepted, accept
from shared.payments.model import TransactionRequest, lane_of
from shared.payments.parked import retry_due
from shared.payments.settle import settle_lanes, work_lanes
from tests.faults.failpoints import ACTIONS
from tests.faults.victim import Order, Report, as_environment, run
from tests.integration.conftest import empty_database, forget_settings, migrate
from tests.integration.factories import ago, deposit, new_user, settled, states, stored, withdrawal
from tests.integration.invariants import assert_books_balance
from tests.kit.servers import embedded_postgres, running_broker

pytestmark = pytest.mark.system

VICTIM_SECONDS = 20
FINAL_SECONDS = 10

ACCEPTING = ["insert", "pipeline", "send the task"]  # a statement that is its own commit
REPEATING = ["insert", "find"]
SETTLING = [
    *("lock the lane", "DEL", "read pending", "lock users", "allow the scan", "scan the past", "write the batch"),
    *("commit", "pipeline"),
]

forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(["tests.faults.victim"])


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Postgres and a broker of our own; this process uses them too."""
    folder = tmp_path_factory.mktemp("servers")
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        url = stack.enter_context(empty_database(stack.enter_context(embedded_postgres(folder))))
        addresses = as_environment(url, stack.enter_context(running_broker(folder)).url)
        for name, value in addresses.items():
            patch.setenv(name, value)
        forget_settings()
        migrate(url)
        yield addresses
        database.engine().dispose()
    forget_settings()


@pytest.fixture
def user_id(servers: dict[str, str]) -> Iterator[int]:
    """A user with 10.00 since two hours ago and 1.00 more since now. Afterwards the user's books must balance."""
    made = new_user()
    assert settled(deposit(made, 1000, ago(hours=2)), deposit(made, 100)) == ["COMPLETED"] * 2
    yield made
    assert_books_balance(made - 1)


class Victim:
    """A forked process at work on an order; `reports` fills as it tells."""

    def __init__(self, order: Order) -> None:
        self._here, there = forked.Pipe(duplex=False)
        self.process = forked.Process(target=run, args=[order, there], daemon=True)
        self.process.start()
        there.close()

    def await_firing(self) -> None:
        """Until it says that it has come to its failpoint."""
        fired = False
        while not fired:
            assert self._here.poll(VICTIM_SECONDS), "the victim says nothing"
            fired = self._here.recv().fired

    def end(self) -> tuple[int | None, Report | None]:
        """The exit code, and the last of what it told."""
        self.process.join(VICTIM_SECONDS)
        assert self.process.exitcode is not None, "the victim hangs"
        last: Report | None = None
        while self._here.poll():
            try:
                last = self._here.recv()
            except EOFError:
                break
        return self.process.exitcode, last


def assert_fired(action: str, code: int | None, report: Report | None) -> None:
    if action == "kill":
        assert code == -9, (code, report)
    else:
        assert (code, report and report.fired) == (0, True), report


def settle_until_final(lane: int, *requests: TransactionRequest) -> None:
    """As the sweep of other processes does, until all is final."""
    deadline = time.monotonic() + FINAL_SECONDS
    while "PENDING" in states(*requests):
        assert time.monotonic() < deadline, stored(*requests)
        try:
            work_lanes([lane])
            retry_due()
        except Exception as error:
            if not is_infrastructure_error(error):
                raise
        time.sleep(0.02)


def points(steps: list[str]) -> list[str]:
    return [f"{side} {step}" for step in steps for side in ("before", "after")]


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("point", points(SETTLING))
def test_settling_survives(servers: dict[str, str], user_id: int, point: str, action: str) -> None:
    """Both withdrawals take all there is, so settling one twice would be refused; one of them is late."""
    batch = [withdrawal(user_id, 1000, ago(hours=1)), withdrawal(user_id, 100), deposit(user_id, 7)]
    accept(batch)
    lane = lane_of(user_id)
    victim = Victim(Order(servers, point, action, lane=lane))
    if action == "stall":  # meanwhile another one comes for the lane
        victim.await_firing()
        settle_until_final(lane, *batch)
    code, report = victim.end()
    assert_fired(action, code, report)
    settle_until_final(lane, *batch)
    assert states(*batch) == ["COMPLETED"] * 3
    assert [t.balance_after for t in stored(*batch)] == [100, 0, 7]


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("point", points(ACCEPTING))
def test_accepting_survives(servers: dict[str, str], user_id: int, point: str, action: str) -> None:
    """Whoever was told that it stands is right; whoever was told nothing repeats it; it counts once."""
    request = withdrawal(user_id, 1100)
    victim = Victim(Order(servers, point, action, request=request))
    others: list[Any] = []
    if action == "stall":  # meanwhile the client repeats, elsewhere
        victim.await_firing()
        repeat = threading.Thread(target=lambda: others.extend(accept([request])))
        repeat.start()
        repeat.join(VICTIM_SECONDS)
        assert others, "the repeat hangs"
    code, report = victim.end()
    assert_fired(action, code, report)
    if report and report.accepted:
        assert len(stored(request)) == 1, "a 2xx whose row is not there"
    (again,) = accept([request])
    assert isinstance(again, Accepted)
    assert again.transaction.amount == 1100
    settle_until_final(lane_of(user_id), request)
    assert [t.balance_after for t in stored(request)] == [0]


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("point", points(REPEATING))
def test_a_repeat_survives(servers: dict[str, str], user_id: int, point: str, action: str) -> None:
    request = withdrawal(user_id, 1100)
    assert settled(request) == ["COMPLETED"]
    code, report = Victim(Order(servers, point, action, request=request)).end()
    assert_fired(action, code, report)
    assert [t.balance_after for t in stored(request)] == [0]


def test_every_boundary_is_walked(servers: dict[str, str], user_id: int) -> None:
    """What accepting and settling pass, step by step: a statement that is added must be added to the walk."""

    def passed(order: Order) -> list[str]:
        code, report = Victim(order).end()
        assert (code, report and report.error) == (0, None), report
        assert report
        return report.passed

    batch = [withdrawal(user_id, 1000, ago(hours=1)), withdrawal(user_id, 100)]
    assert passed(Order(servers, request=batch[0])) == points(ACCEPTING)
    assert passed(Order(servers, lane=lane_of(user_id))) == points(SETTLING)
    assert passed(Order(servers, request=batch[0])) == points(REPEATING)
    accept(batch)
    settle_lanes([lane_of(user_id)])
