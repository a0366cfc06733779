"""Settling: in order, exactly once, never below zero, by one worker at a time per lane."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from shared.database import transaction
from shared.money import MAX_BALANCE
from shared.payments import doorbell
from shared.payments.accept import accept
from shared.payments.batch import BooksDisagree, settle_batch
from shared.payments.model import TransactionRequest, lane_of
from shared.payments.queries import lanes, ledger, users
from shared.payments.queries.users import LockedAccounts
from shared.payments.reads import get_balance, get_user
from shared.payments.settle import settle_lanes
from tests.integration.factories import (
    accepted,
    ago,
    clock,
    deposit,
    new_user,
    new_users,
    outsider,
    plain_engine,
    recorded_statements,
    run_sql,
    settled,
    states,
    stored,
    withdrawal,
)
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.integration


def entries(user_id: int) -> list[tuple[int, int, int]]:
    """(seq, amount, balance_after) of a user's ledger."""
    with plain_engine().connect() as connection:
        found = text("SELECT seq, amount, balance_after FROM ledger WHERE user_id = :user ORDER BY seq")
        return [tuple(row) for row in connection.execute(found, {"user": user_id})]


def test_a_users_payments_are_settled_in_the_order_of_acceptance() -> None:
    user = new_user()
    rows = [withdrawal(user, 1), deposit(user, 10), withdrawal(user, 7), withdrawal(user, 4), withdrawal(user, 3)]
    assert settled(*rows) == ["REJECTED", "COMPLETED", "COMPLETED", "REJECTED", "COMPLETED"]
    assert entries(user) == [(1, 10, 10), (2, -7, 3), (3, -3, 0)]


def test_completed_shows_a_balance_and_rejected_a_reason() -> None:
    user = new_user()
    settled(completed := deposit(user, 10), rejected := withdrawal(user, 11))
    done, refused = stored(completed, rejected)
    assert (done.reason, done.balance_after) == (None, 10)
    assert (refused.reason, refused.balance_after, refused.effective_at) == ("insufficient_funds", None, None)
    assert done.settled_at is not None
    assert done.accepted_at <= done.settled_at == refused.settled_at
    assert get_balance(user).balance == get_user(user).balance == 10


def test_many_batches_empty_a_lane_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    user = new_user()
    monkeypatch.setattr(settle_batch, "__defaults__", (None, 3))
    rows = [deposit(user, 1) for _ in range(10)]
    accepted(*rows)
    assert settle_lanes([lane_of(user)]).counts.settled == 10
    assert [balance for _, _, balance in entries(user)] == list(range(1, 11))


def test_a_slice_ends_and_rings_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    user = new_user()
    rang: list[int] = []
    monkeypatch.setattr(settle_batch, "__defaults__", (None, 3))
    monkeypatch.setattr("shared.payments.settle.SETTLE_SLICE_SECONDS", 0.0)
    monkeypatch.setattr(doorbell, "ring", lambda sources, **_: rang.extend(sources))
    accepted(*[deposit(user, 1) for _ in range(10)])
    assert settle_lanes([lane_of(user)]).counts.settled == 3
    assert rang == [lane_of(user)]


def test_a_limit_of_the_balance_rejects_a_deposit() -> None:
    user = new_user()
    rows = [deposit(user, MAX_BALANCE - 5), deposit(user, 6), deposit(user, 5), deposit(user, 1), withdrawal(user, 1)]
    assert settled(*rows) == ["COMPLETED", "REJECTED", "COMPLETED", "REJECTED", "COMPLETED"]
    assert stored(rows[1])[0].reason == "balance_limit"
    assert get_balance(user).balance == MAX_BALANCE - 1


def settle_together(lane: int, workers: int = 4) -> None:
    """Several workers settle the same lane at once, each until it sees nothing left. Any error is raised."""

    def work(_: int) -> None:
        while (done := settle_lanes([lane])).counts.settled or done.busy:
            pass

    with ThreadPoolExecutor(workers) as threads:
        list(threads.map(work, range(workers)))


def test_of_100_withdrawals_exactly_the_covered_complete() -> None:
    user = new_user()
    settled(deposit(user, 95_00))
    rows = [withdrawal(user, 10_00) for _ in range(100)]
    with ThreadPoolExecutor(30) as threads:
        accepting = threads.map(lambda row: accept([row]), rows)
        settle_together(lane_of(user))  # while they come in
        list(accepting)
    settle_together(lane_of(user))
    assert sorted(states(*rows)) == ["COMPLETED"] * 9 + ["REJECTED"] * 91
    assert get_balance(user).balance == 5_00


def test_concurrent_workers_never_settle_a_row_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lock and read are statements of their own: in one, the read's snapshot is older than the lock."""
    three = new_users(3, lane=5)
    monkeypatch.setattr(settle_batch, "__defaults__", (None, 5))
    for _ in range(25):
        accepted(*(rows := [deposit(user, 1) for user in three * 10]))
        settle_together(5, workers=6)
        assert states(*rows) == ["COMPLETED"] * 30


def test_lock_and_read_are_statements_of_their_own_in_this_order() -> None:
    """Together they would see a settled row as PENDING."""
    accepted(row := deposit(new_user(), 1))
    statements = [
        ["pg_try_advisory_xact_lock"],
        ["FROM transactions t"],
        ["FOR NO KEY UPDATE", "clock_timestamp()"],
        ["INSERT INTO ledger", "INSERT INTO events", "UPDATE transactions", "UPDATE users"],
    ]
    steps = [step for statement in statements for step in statement]
    with recorded_statements() as sent:
        settle_batch([lane_of(row.user_id)])
    assert [[step for step in steps if step in statement] for statement, _ in sent] == statements


def test_the_clock_is_read_when_the_last_account_is_locked() -> None:
    """Before that it would count time that was spent waiting: the one who had the lock may have written a later moment."""
    first, last = sorted(new_users(2))

    def lock() -> LockedAccounts:
        with transaction() as connection:
            return users.lock_accounts(connection, [first, last])

    with ThreadPoolExecutor(1) as pool, outsider() as holder, plain_engine().connect() as watch:
        holder.execute(text("SELECT FROM users WHERE id = :last FOR UPDATE"), {"last": last})
        locked = pool.submit(lock)
        waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        wait_until(lambda: watch.scalar(waits), "the account is waited for")
        let_go = clock()
        holder.rollback()
        assert locked.result().moment > let_go


def test_a_busy_lane_is_left_at_once_and_others_are_not_held_up() -> None:
    (user,), (other,) = new_users(1, lane=3), new_users(1, lane=4)
    accepted(here := deposit(user, 1), elsewhere := deposit(other, 1))
    with outsider() as holder:
        assert lanes.try_lock_lanes(holder, [3])
        assert settle_batch([3]) is None
        done = settle_lanes([3])
        assert done.busy
        assert str(done) == "busy elsewhere; lane 3"
        settle_lanes([4])
        assert states(here, elsewhere) == ["PENDING", "COMPLETED"]
    settle_lanes([3])
    assert states(here) == ["COMPLETED"]


@contextmanager
def losing_a_row_of(table: str, condition: str) -> Iterator[None]:
    """Updates of rows that meet the condition are lost on the way, as by a bug."""
    run_sql("CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    run_sql(f"CREATE TRIGGER lose BEFORE UPDATE ON {table} FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION lose()")
    try:
        yield
    finally:
        run_sql("DROP FUNCTION lose() CASCADE")


@pytest.mark.parametrize("table", ["transactions", "users"])
def test_a_batch_that_misses_a_row_is_rolled_back(table: str) -> None:
    first, second = new_users(2, lane=6)
    rows = [deposit(first, 1), deposit(second, 2)]
    accepted(*rows)
    condition = f"OLD.uid = '{rows[1].uid}'" if table == "transactions" else f"OLD.id = {second}"
    with losing_a_row_of(table, condition), pytest.raises(BooksDisagree):
        settle_batch([6])
    assert states(*rows) == ["PENDING", "PENDING"]
    assert entries(first) == entries(second) == []
    assert get_balance(first).balance == 0


def test_every_outcome_has_an_event_in_the_order_of_commits() -> None:
    lane = 7
    three = new_users(3, lane)
    cycle = itertools.cycle([deposit, withdrawal, withdrawal])
    for _ in range(5):
        settled(*[next(cycle)(user, amount) for amount in (3, 1, 2) for user in three])
    with plain_engine().connect() as connection:
        found = text("""
            SELECT user_id, user_seq, type, balance_before, balance_after, occurred_at
            FROM events WHERE user_id = ANY(:users) ORDER BY id
        """)
        events = connection.execute(found, {"users": three}).all()
    assert len(events) == 5 * 9
    assert [event.occurred_at for event in events] == sorted(event.occurred_at for event in events)
    for user in three:
        mine = [event for event in events if event.user_id == user]
        assert [event.user_seq for event in mine] == list(range(1, 16))
        for event in mine:
            assert (event.type == "transaction.rejected") == (event.balance_before == event.balance_after)


def test_events_of_a_lane_commit_in_the_order_of_their_ids() -> None:
    """A reader that remembers the last id of a lane must miss none: it reads on while others settle."""
    lane = 8
    rows = [deposit(user, 1) for user in new_users(2, lane) for _ in range(100)]

    def pay(row: TransactionRequest) -> None:
        accepted(row)
        settle_lanes([lane])

    with ThreadPoolExecutor(5) as threads, plain_engine().connect() as reader:
        newer = text("SELECT id, uid FROM events WHERE lane = 8 AND id > :last ORDER BY id LIMIT 7")
        last = reader.scalar(text("SELECT coalesce(max(id), 0) FROM events WHERE lane = 8"))
        seen: list[object] = []
        tasks = [threads.submit(pay, row) for row in rows]
        is_over, page = False, None
        while not is_over or page:
            is_over = all(task.done() for task in tasks) and not settle_lanes([lane]).counts.settled
            page = reader.execute(newer, {"last": last}).all()
            seen += [event.uid for event in page]
            last = page[-1].id if page else last
    assert len(seen) == len(rows)
    assert set(seen) == {row.uid for row in rows}


@pytest.mark.parametrize("skew", [-30, 30])
def test_a_client_clock_off_by_30_seconds_rejects_nothing(skew: int) -> None:
    user = new_user()
    rows = [deposit(user, 5), withdrawal(user, 5, ago(seconds=-skew))]
    assert settled(*rows) == ["COMPLETED", "COMPLETED"]
    now = clock()
    assert all(row.effective_at is not None and row.effective_at <= now for row in stored(*rows))


def test_a_slow_queue_rejects_nothing() -> None:
    """Accepted long before it is settled: what was "now" then is after all that was settled since."""
    user = new_user()
    run_sql(f"""
        INSERT INTO transactions (uid, user_id, type, amount, requested_at, accept_order, accepted_at)
        SELECT gen_random_uuid(), {user}, type, 5, clock_timestamp() - interval '1 hour' + skew,
               nextval('transactions_accept_order_seq'), clock_timestamp() - interval '1 hour'
        FROM (VALUES ('DEPOSIT', interval '30 s'), ('WITHDRAW', interval '-59 s')) AS row (type, skew)
    """)
    settle_lanes([lane_of(user)])
    assert [amount for _, amount, _ in entries(user)] == [5, -5]


def test_history_never_goes_back_when_the_clock_does(monkeypatch: pytest.MonkeyPatch) -> None:
    user = new_user()
    lock_accounts = users.lock_accounts

    def an_hour_ahead(*args: Any) -> LockedAccounts:
        locked = lock_accounts(*args)
        return locked._replace(moment=locked.moment + timedelta(hours=1))

    with monkeypatch.context() as patch:
        patch.setattr(users, "lock_accounts", an_hour_ahead)
        settled(before := deposit(user, 5))
    rows = [withdrawal(user, 3), withdrawal(user, 2, ago(seconds=5))]
    assert settled(*rows) == ["COMPLETED"] * 2
    first, *rest = stored(before, *rows)
    assert [row.effective_at for row in rest] == [first.effective_at] * 2
    assert get_balance(user).balance == 0


def test_a_failure_at_any_write_leaves_everything_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    user = new_user()
    settled(deposit(user, 5))
    accepted(*(rows := [withdrawal(user, 2), withdrawal(user, 9)]))
    for module, name in [(users, "lock_accounts"), (ledger, "write")]:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fails_after(getattr(module, name)))
            with pytest.raises(ZeroDivisionError):
                settle_batch([lane_of(user)])
        assert states(*rows) == ["PENDING", "PENDING"], name
        assert entries(user) == [(1, 5, 5)], name
    settle_lanes([lane_of(user)])
    assert states(*rows) == ["COMPLETED", "REJECTED"]


def fails_after(function: object) -> object:
    def run(*args: object, **kwargs: object) -> None:
        function(*args, **kwargs)  # type: ignore[operator]
        raise ZeroDivisionError

    return run


def test_rows_accepted_during_settling_are_settled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look at the flag after the commit: who rang before the lock was let go, and found it busy, has left."""
    user = new_user()
    late: list[TransactionRequest] = []

    def rung(lanes: list[int], _settled: object) -> set[int]:
        if late:
            return set()
        late.append(deposit(user, 7))
        accepted(*late)
        return set(lanes)

    monkeypatch.setattr(doorbell, "publish_settled_and_find_flags", rung)
    settled(deposit(user, 1))
    assert states(*late) == ["COMPLETED"]
