"""The running service, one for all tests that only use it; `start_service` for those that break it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.database import query
from tests.kit.http import Api
from tests.kit.service import Service, payments
from tests.kit.waiting import wait_until

DIFFERENCES = """
    SELECT id, balance, total, last_balance FROM users LEFT JOIN LATERAL (
        SELECT coalesce(sum(amount), 0) AS total, coalesce((array_agg(balance_after ORDER BY seq DESC))[1], 0)
            AS last_balance
        FROM ledger WHERE user_id = users.id
    ) AS book ON true
    WHERE (balance, balance) IS DISTINCT FROM (total, last_balance)
"""
# But for lanes that a test holds, so that what it sent stays PENDING for all tests of its module.
PENDING = """
    SELECT FROM transactions WHERE status = 'PENDING' AND parked_at IS NULL AND lane NOT IN (
        SELECT objid FROM pg_locks JOIN pg_stat_activity USING (pid)
        WHERE locktype = 'advisory' AND classid = 7411 AND granted AND application_name NOT LIKE 'payments-%%'
    ) LIMIT 1
"""


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    started = Service(tmp_path_factory.mktemp("service") / "data").wait_ready()
    yield started
    verified = payments("verify", "--data", started.data)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    started.stop()


@pytest.fixture(scope="module")
def api(service: Service) -> Api:
    """A client of the running service."""
    return Api(service.url)


@pytest.fixture
def user_id(api: Api) -> int:
    """A new user for each test."""
    return api.add_user()


@pytest.fixture(autouse=True)
def the_books_balance(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test that used the service: all it sent is settled, so that none of it is among the events and numbers that
    the next test sees, and each balance is the sum and the last line of its ledger.
    """
    yield
    if "service" in request.fixturenames:
        url = request.getfixturevalue("service").database_url
        wait_until(lambda: query(url, PENDING) == [], "all is settled", 60)
        assert query(url, DIFFERENCES) == []


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """A factory: start_service() waits for `ready`; options and variables as of `up`."""
    started: list[Service] = []

    def start(*options: str, data: Path = tmp_path / "data", wait: bool = True, **changes: str) -> Service:
        started.append(Service(data, options, changes))
        return started[-1].wait_ready() if wait else started[-1]

    yield start
    for one in reversed(started):
        one.stop()
