"""What /metrics says of the database, and of the process asked."""

import time
from collections.abc import Iterator

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text

from shared import database
from shared.health import get_oldest_snapshot_seconds
from shared.payments import doorbell
from shared.payments.model import LANES, RowCounts, Status
from shared.payments.queries.lanes import read_backlog
from shared.payments.verify import Findings, list_last_verification, record
from shared.settings import settings
from shared.webhooks import manage
from shared.webhooks.deliver import expand
from shared.webhooks.model import NewWebhook
from tests.integration.conftest import forget_settings
from tests.integration.database.test_plans import plans_of
from tests.integration.factories import (
    accepted,
    deposit,
    new_user,
    new_users,
    outsider,
    prune,
    run_sql,
    settled,
    withdrawal,
)
from tests.kit.waiting import wait_until
from web import gauges
from web.app import create_app
from web.limits.cached_read import CachedRead

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
    for reading in (gauges.webhooks, gauges.snapshot, gauges.verification):
        CachedRead.__init__(reading, reading._what, reading._read, 0.5, reading._duty)
    lines = client.get("/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def test_new_transactions_are_counted_once_and_repeats_are_not(client: FlaskClient) -> None:
    before = numbers(client)["payments_accepted_total"]
    first, second = (deposit(new_user(), 1) for _ in range(2))
    accepted(first, second)
    accepted(first, second)
    assert numbers(client)["payments_accepted_total"] == before + 2


def test_rejections_and_batches_are_counted(client: FlaskClient) -> None:
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
        assert get_oldest_snapshot_seconds() >= 0.3
    with outsider() as idle:
        idle.execute(text("SELECT 1"))  # READ COMMITTED: between statements it holds nothing
        run_sql("SELECT pg_sleep(0.3)")
        # autovacuum may hold one for a while
        wait_until(lambda: get_oldest_snapshot_seconds() < 0.3, "no old snapshot is held", 30)


@pytest.mark.usefixtures("no_verification")
def test_the_last_verification_is_a_metric_once_there_is_one(client: FlaskClient) -> None:
    assert not [name for name in numbers(client) if "verify" in name]
    record(Findings(RowCounts(users=2, entries=5), differences=3))
    run_sql("UPDATE verifications SET finished_at = finished_at - interval '1 hour'")
    found = numbers(client)
    assert found["payments_verify_differences"] == 3
    assert 3600 <= found["payments_verify_age_seconds"] < 3700
    record(Findings(RowCounts(users=2, entries=5)))
    found = numbers(client)
    assert found["payments_verify_differences"] == 0
    assert found["payments_verify_age_seconds"] < 100


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setenv("WEBHOOK_ALLOW_PRIVATE", "1")
    settings.cache_clear()
    made = manage.register(NewWebhook("http://127.0.0.1:1024/", ["transaction.completed"], 0)).webhook
    yield made.id
    manage.delete(made.id)
    while prune():
        pass
    settings.cache_clear()


def test_events_that_are_no_deliveries_yet_are_late(client: FlaskClient, webhook: int) -> None:
    """Nobody expands while no notifier runs. What is due and what is not even that count alike."""
    settled(deposit(user := new_user(), 1))
    settled(deposit(new_user(), 1))
    assert numbers(client)["payments_webhook_overdue_seconds"] < 60
    run_sql("UPDATE events SET occurred_at = occurred_at - interval '90 seconds' WHERE user_id = :user", user=user)
    assert 90 <= numbers(client)["payments_webhook_overdue_seconds"] < 150
    run_sql("UPDATE webhooks SET disabled_at = now() WHERE id = :id", id=webhook)
    assert numbers(client)["payments_webhook_overdue_seconds"] == 0, "it is told nothing"
    run_sql("UPDATE webhooks SET disabled_at = NULL WHERE id = :id", id=webhook)
    while expand():
        pass
    assert numbers(client)["payments_webhook_overdue_seconds"] < 60, "it counts from its turn on"


def test_a_gauge_that_cannot_be_read_hides_no_other(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges.snapshot, "_read", lambda: 1 / 0)
    numbers(client)  # the failure is counted while it is asked for
    found = numbers(client)
    assert "payments_webhooks_off" in found
    assert "payments_oldest_snapshot_seconds" not in found
    assert found['payments_duty_failures_total{duty="read_snapshot"}'] >= 1
    assert found['payments_duty_failures_total{duty="read_webhooks"}'] == 0


def test_after_a_slow_failure_nobody_reads_for_as_long_again() -> None:
    began: list[float] = []

    def read() -> int:
        began.append(time.monotonic())
        if len(began) == 1:
            time.sleep(0.4)
            raise ZeroDivisionError
        return 1

    reading = CachedRead("something", read, 60, "read_keys")
    wait_until(lambda: reading.latest()[0] is not None, "it has been read", 10, 0.01)
    first, second = began
    assert second - first >= 0.8


def test_the_bell_that_rests_is_told(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorbell, "_circuit_open_until", 0.0)
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


def test_without_a_database_only_its_gauges_are_missing(
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
    assert "verifications_pkey" in plans_of(list_last_verification, "(COSTS OFF)")
