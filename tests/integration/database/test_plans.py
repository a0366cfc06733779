"""The questions asked at every payment are answered by index look-ups, however long a user's history is."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from shared.database import transaction
from shared.payments import reads
from shared.payments.batch import settle_batch
from shared.payments.feed import FeedPosition, get_events, get_user_events
from shared.payments.model import LANES, StatementFilter, StatementKey, Status, lane_of
from shared.payments.queries import lanes, ledger
from shared.payments.rules import Account
from tests.integration.factories import (
    accepted,
    deposit,
    new_user,
    new_users,
    recorded_statements,
    run_sql,
    settled,
    withdrawal,
)

pytestmark = pytest.mark.integration

ENTRIES = 20_000
BEGIN = datetime(2025, 1, 1, tzinfo=UTC)  # one entry a minute from here on, every sixth recorded an hour late
MIDDLE = BEGIN + timedelta(minutes=ENTRIES // 2)


@pytest.fixture(scope="module")
def busy_user(database_url: str) -> int:
    """A user with a long history, some of it late, and a few PENDING transactions."""
    user = new_user()
    run_sql(
        """
        WITH asked AS MATERIALIZED (
            SELECT n, gen_random_uuid() AS uid, CAST(:begin AS timestamptz) + n * interval '1 minute' AS moment,
                   CASE n % 6 WHEN 0 THEN interval '1 hour' ELSE interval '0' END AS lateness
            FROM generate_series(1, :entries) AS n
        ), taken AS (
            INSERT INTO transactions (uid, user_id, type, amount, requested_at, accept_order, accepted_at)
            SELECT uid, :user, 'DEPOSIT', 1, moment - lateness, nextval('transactions_accept_order_seq'), moment
            FROM asked
        ), told AS (
            INSERT INTO events (lane, user_id, user_seq, type, uid, balance_before, balance_after, occurred_at)
            SELECT :user % 16, :user, n, 'transaction.completed', uid, n - 1, n, moment FROM asked ORDER BY n
        ), booked AS (
            INSERT INTO ledger (user_id, seq, uid, amount, balance_after, effective_at, history_at, recorded_at)
            SELECT :user, n, uid, 1, n, moment - lateness, max(moment - lateness) OVER (ORDER BY n), moment FROM asked
        )
        UPDATE users SET balance = :entries, last_seq = :entries, last_event_seq = :entries,
            last_history_at = (SELECT max(moment - lateness) FROM asked)
        WHERE id = :user
        """,
        begin=BEGIN,
        entries=ENTRIES,
        user=user,
    )
    run_sql("UPDATE transactions SET status = 'COMPLETED', settled_at = accepted_at WHERE user_id = :user", user=user)
    run_sql("VACUUM ANALYZE users, transactions, ledger, events")
    return user


def plans_of(call: Callable[[], object], options: str = "") -> str:
    """The plans of the statements that a call sends."""
    with recorded_statements() as sent:
        call()
    assert sent
    with transaction() as connection:
        return "\n".join(
            line
            for statement, parameters in sent
            if not statement.startswith("SET")
            for line in connection.exec_driver_sql(f"EXPLAIN {options} {statement}", parameters).scalars()
        )


def assert_looked_up(plan: str, *indexes: str) -> None:
    assert not re.search(r"Seq Scan on (transactions|ledger|events)\b", plan), plan
    for index in indexes:
        assert re.search(rf"\b{index}\b", plan), plan


def test_a_past_balance(busy_user: int) -> None:
    plan = plans_of(lambda: reads.get_balance(busy_user, MIDDLE))
    assert_looked_up(plan, "ledger_history", "ledger_late")


def test_a_past_balance_reads_only_the_late_entries_it_needs(busy_user: int) -> None:
    def ask() -> int:
        with transaction() as connection:
            return ledger.get_balance_at(connection, busy_user, MIDDLE)

    with transaction() as connection:
        naive = text("SELECT sum(amount) FROM ledger WHERE user_id = :user AND effective_at <= :instant")
        assert ask() == connection.scalar(naive, {"user": busy_user, "instant": MIDDLE})
    read = re.findall(r"actual rows=([\d.]+)", plans_of(ask, "(ANALYZE, COSTS OFF, TIMING OFF)"))
    assert 0 < max(float(rows) for rows in read) < 30


def test_the_next_rows_of_a_lane(busy_user: int) -> None:
    accepted(deposit(busy_user, 1), deposit(busy_user, 1))

    def read() -> None:
        with transaction() as connection:
            assert len(lanes.read_pending(connection, [lane_of(busy_user)], 500)) == 2
            assert len(lanes.read_pending_of_user(connection, busy_user, 1)) == 1

    assert_looked_up(plans_of(read), "transactions_pending_lane", "transactions_pending_user", "transactions_parked")


@pytest.mark.parametrize(
    "wanted",
    [
        StatementFilter(),
        StatementFilter(status=Status.COMPLETED),
        StatementFilter(since=MIDDLE),
        StatementFilter(until=MIDDLE),
    ],
    ids=["all", "completed", "since", "until"],
)
@pytest.mark.parametrize("after", [None, StatementKey(MIDDLE, 10_000)], ids=["first page", "next page"])
def test_a_page_of_the_statement(busy_user: int, wanted: StatementFilter, after: StatementKey | None) -> None:
    plan = plans_of(lambda: reads.get_statement(busy_user, wanted, after, 100))
    assert_looked_up(plan, "transactions_statement", "ledger_uid_key")
    assert "Sort" not in plan, "the index gives the order"


def test_a_transaction_and_the_state_of_the_backlog(busy_user: int) -> None:
    accepted(row := deposit(busy_user, 1))
    assert_looked_up(plans_of(lambda: reads.get_transaction(row.uid)), "transactions_pkey", "ledger_uid_key")
    assert_looked_up(plans_of(reads.get_backlog), "transactions_pending_lane", "transactions_parked")


def rows_read(plan: str) -> float:
    """Of the tables that grow, by all scans together, with what they threw away."""
    scans = re.findall(
        r"Scan .*on (?:events|transactions|ledger)\b.*actual rows=([\d.]+) loops=(\d+)\)((?:\n(?! *->).*)*)", plan
    )
    removed = [
        (int(count), int(loops)) for _, loops, more in scans for count in re.findall(r"Removed by .*: (\d+)", more)
    ]
    return sum(float(rows) * int(loops) for rows, loops, _ in scans) + sum(count * loops for count, loops in removed)


@pytest.mark.parametrize("limit", [10, 100, 1000])
@pytest.mark.parametrize("part", [0, 0.5])
def test_a_feed_page_reads_a_bounded_part_of_each_lane(busy_user: int, limit: int, part: float) -> None:
    with transaction() as connection:
        first = connection.scalar(text("SELECT min(id) FROM events WHERE user_id = :user"), {"user": busy_user})
    assert first
    after = FeedPosition((first + int(ENTRIES * part),) * LANES)
    plan = plans_of(lambda: get_events(after, limit), "(ANALYZE, COSTS OFF, TIMING OFF)")
    assert_looked_up(plan, "events_lane", "transactions_pkey", "ledger_uid_key")
    assert "events_pkey" not in plan, "one lane only looks like all of them while no other has events"
    assert 2.9 * limit < rows_read(plan) < 3.1 * limit


@pytest.mark.parametrize("part", [0, 0.5])
def test_a_users_feed_page_reads_a_bounded_part(busy_user: int, part: float) -> None:
    (mate,) = new_users(1, lane_of(busy_user))
    settled(deposit(mate, 1))
    with transaction() as connection:
        first = connection.scalar(text("SELECT min(id) FROM events WHERE user_id = :user"), {"user": busy_user})
    assert first
    after = FeedPosition((first + int(ENTRIES * part),) * LANES)
    for user_id, count in ((busy_user, 100), (mate, 1)):
        pages = []
        plan = plans_of(lambda: pages.append(get_user_events(user_id, after, 100)), "(ANALYZE, COSTS OFF, TIMING OFF)")  # noqa: B023
        assert_looked_up(plan, "events_user_id_user_seq_key", "transactions_pkey", "ledger_uid_key")
        assert len(pages[0].items) == count
        assert rows_read(plan) <= 3 * count + 4 * ENTRIES.bit_length()
        again = plans_of(lambda: get_user_events(user_id, pages[0].next, 100), "(ANALYZE, COSTS OFF, TIMING OFF)")  # noqa: B023
        assert rows_read(again) <= 3 * 100 + 1


def test_accepting(busy_user: int) -> None:
    for count in (1, 100):
        plan = plans_of(lambda: accepted(*[deposit(busy_user, 1) for _ in range(count)]))  # noqa: B023
        assert_looked_up(plan, "transactions_pkey")


def test_a_late_withdrawal_reads_only_what_is_later(busy_user: int) -> None:
    near_the_end = BEGIN + timedelta(minutes=ENTRIES - 200)
    with transaction() as connection:
        account = Account(busy_user, ENTRIES, ENTRIES, BEGIN, 0)
        starts = [near_the_end, near_the_end + timedelta(minutes=10)]
        plan = plans_of(lambda: ledger.scan_lowest_balances(connection, account, starts))
    assert_looked_up(plan, "ledger_history")


def test_late_withdrawals_with_a_long_history_are_settled(busy_user: int) -> None:
    """What the trigger reads must not grow with the batch times the history: a time-out would stop the lane."""
    accepted(*[withdrawal(busy_user, 1, MIDDLE - timedelta(minutes=4_000)) for _ in range(500)])
    done = settle_batch([lane_of(busy_user)])
    assert done
    assert [outcome.status for outcome in done.outcomes] == [Status.COMPLETED] * 500
