"""What /metrics says of the database, and of the process asked."""

import time
from collections.abc import Iterator

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text

from shared import database, doorbell
from shared.queries.lanes import read_backlog
from shared.queries.verifying import Counts
from shared.status import LANES, Status
from shared.verifying import Findings, record
from shared.watching import get_watched
from tests.integration.conftest import forget_settings
from tests.integration.given import accepted, deposit, new_user, new_users, outsider, run_sql, settled, withdrawal
from tests.integration.test_plans import plans_of
from web.app import create_app
from web.gauges import watched
from web.readings import Reading

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def client() -> FlaskClient:
    return create_app().test_client()


@pytest.fixture
def no_verification() -> Iterator[None]:
    run_sql("DELETE FROM verifications")
    yield
    run_sql("DELETE FROM verifications")


def numbers(client: FlaskClient) -> dict[str, float]:
    """All that /metrics says, from readings made now."""
    Reading.__init__(watched, "anew", get_watched, 0.5)
    lines = client.get("/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def test_new_transactions_are_counted_once_and_repeats_are_not(client: FlaskClient) -> None:
    before = numbers(client)["payments_accepted_total"]
    first, second = (deposit(new_user(), 1) for _ in range(2))
    accepted(first, second)
    accepted(first, second)
    assert numbers(client)["payments_accepted_total"] == before + 2


def test_rejections_are_counted_by_their_reason_and_batches_by_their_size(client: FlaskClient) -> None:
    user = new_user()
    settled(deposit(user, 1))
    before = numbers(client)
    assert settled(*(withdrawal(user, 5) for _ in range(2)), deposit(user, 1)) == ["REJECTED"] * 2 + ["COMPLETED"]
    after = numbers(client)
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    assert grown['payments_rejected_total{reason="insufficient_funds"}'] == 2
    assert grown['payments_rejected_total{reason="balance_limit"}'] == 0
    assert grown[f'payments_settled_total{{status="{Status.REJECTED}"}}'] == 2
    assert (grown["payments_batch_size_count"], grown["payments_batch_size_sum"]) == (1, 3)


def test_the_pending_ones_are_counted_by_lane() -> None:
    (some,), (other,) = new_users(1, lane=3), new_users(1, lane=12)
    accepted(*(deposit(some, 1) for _ in range(4)), deposit(other, 1))
    with database.transaction() as connection:
        backlog = read_backlog(connection, LANES)
    assert {lane: count for lane, count in enumerate(backlog.of_lanes) if count} == {3: 4, 12: 1}
    assert backlog.pending == 5


def test_a_snapshot_that_is_held_is_told_by_its_age() -> None:
    with outsider() as holder:
        holder.execution_options(isolation_level="REPEATABLE READ").execute(text("SELECT 1 FROM users"))
        run_sql("SELECT pg_sleep(0.3)")
        assert get_watched().oldest_snapshot_seconds >= 0.3
    with outsider() as idle:
        idle.execute(text("SELECT 1"))  # READ COMMITTED: between statements it holds nothing
        run_sql("SELECT pg_sleep(0.3)")
        deadline = time.monotonic() + 30
        while get_watched().oldest_snapshot_seconds >= 0.3:  # autovacuum may hold one for a while
            assert time.monotonic() < deadline


@pytest.mark.usefixtures("no_verification")
def test_the_last_verification_is_told_and_nothing_while_there_is_none(client: FlaskClient) -> None:
    assert not [name for name in numbers(client) if "verify" in name]
    record(Findings(Counts(users=2, entries=5), differences=3))
    run_sql("UPDATE verifications SET finished_at = finished_at - interval '1 hour'")
    found = numbers(client)
    assert found["payments_verify_differences"] == 3
    assert 3600 <= found["payments_verify_age_seconds"] < 3700
    record(Findings(Counts(users=2, entries=5)))
    found = numbers(client)
    assert found["payments_verify_differences"] == 0
    assert found["payments_verify_age_seconds"] < 100


def test_the_bell_that_rests_is_told(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorbell, "_rests_until", 0.0)
    assert numbers(client)["payments_bell_rests"] == 0
    assert doorbell.peek("settle") is None, "nobody listens"
    assert numbers(client)["payments_bell_rests"] == 1


def test_without_a_broker_the_lengths_of_its_queues_are_missing(client: FlaskClient) -> None:
    assert not [name for name in numbers(client) if name.startswith("payments_queue_messages")]


def test_the_connections_in_use_are_told(client: FlaskClient) -> None:
    before = numbers(client)["payments_database_connections_in_use"]
    with database.transaction(), database.transaction():
        found = numbers(client)
    assert found["payments_database_connections_in_use"] == before + 2
    assert found["payments_database_connections_limit"] == 40


def test_without_a_database_its_gauges_are_missing_and_the_others_are_there(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    database.engine().dispose()
    forget_settings()
    try:
        found = numbers(client)
    finally:
        monkeypatch.undo()
        forget_settings()
    assert {"payments_bell_rests", "payments_backlog_limit", "payments_accepted_total"} <= found.keys()
    assert not found.keys() & {"payments_webhooks_off", "payments_oldest_snapshot_seconds"}


def test_what_is_watched_is_looked_up() -> None:
    plan = plans_of(get_watched, "(COSTS OFF)")
    assert "verifications_pkey" in plan
    assert "deliveries_line" in plan
