"""What a page of the feed reads where all lanes have much to tell: as test_plans, with a table that tempts the planner."""

import pytest

from shared.payments.feed import FeedPosition, get_events, get_user_events
from shared.payments.model import LANES
from tests.integration.database.test_plans import assert_looked_up, plans_of, rows_read
from tests.integration.factories import new_users, run_sql

pytestmark = pytest.mark.integration

EVENTS = 40_000
USERS = 10 * LANES


@pytest.fixture(scope="module")
def many_users(database_url: str) -> tuple[FeedPosition, int]:
    """The cursor before the events of many users, and the first of those."""
    first = new_users(USERS)[0]
    run_sql(
        """
        WITH asked AS MATERIALIZED (
            SELECT n, n / :users + 1 AS seq, CAST(:first AS bigint) + n % :users AS user_id, gen_random_uuid() AS uid,
                   CAST('2025-01-01' AS timestamptz) + n * interval '1 second' AS moment
            FROM generate_series(0, :events - 1) AS n
        ), taken AS (
            INSERT INTO transactions (uid, user_id, type, amount, accept_order, accepted_at)
            SELECT uid, user_id, 'DEPOSIT', 1, nextval('transactions_accept_order_seq'), moment FROM asked
        ), told AS (
            INSERT INTO events (lane, user_id, user_seq, type, uid, balance_before, balance_after, occurred_at)
            SELECT user_id % 16, user_id, seq, 'transaction.completed', uid, seq - 1, seq, moment FROM asked ORDER BY n
        ), booked AS (
            INSERT INTO ledger (user_id, seq, uid, amount, balance_after, effective_at, history_at, recorded_at)
            SELECT user_id, seq, uid, 1, seq, moment, moment, moment FROM asked
        )
        UPDATE users SET balance = :events / :users, last_seq = :events / :users, last_event_seq = :events / :users,
            last_history_at = (SELECT max(moment) FROM asked WHERE asked.user_id = users.id)
        WHERE id >= :first AND id < :first + :users
        """,
        first=first,
        users=USERS,
        events=EVENTS,
    )
    run_sql(
        "UPDATE transactions SET status = 'COMPLETED', settled_at = accepted_at WHERE user_id >= :first", first=first
    )
    run_sql("VACUUM ANALYZE users, transactions, ledger, events")
    start = get_user_events(first, FeedPosition(), 1).items[0].id - 1
    return FeedPosition((start,) * LANES), first


@pytest.mark.parametrize("limit", [100, 1000])
def test_a_page_reads_a_bounded_part_of_each_lane(many_users: tuple[FeedPosition, int], limit: int) -> None:
    after, _ = many_users
    plan = plans_of(lambda: get_events(after, limit), "(ANALYZE, COSTS OFF, TIMING OFF)")
    assert_looked_up(plan, "events_lane", "transactions_pkey", "ledger_uid_key")
    assert limit <= rows_read(plan) <= (LANES + 2) * limit


@pytest.mark.parametrize("limit", [100, 200])  # of 250: reading all of them and sorting is what the planner may prefer
def test_a_page_of_one_user_reads_what_it_shows(many_users: tuple[FeedPosition, int], limit: int) -> None:
    after, user_id = many_users
    plan = plans_of(lambda: get_user_events(user_id, after, limit), "(ANALYZE, COSTS OFF, TIMING OFF)")
    assert_looked_up(plan, "events_user_id_user_seq_key", "transactions_pkey", "ledger_uid_key")
    assert rows_read(plan) <= 3 * limit + 2 * EVENTS.bit_length()
