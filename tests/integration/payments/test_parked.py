"""What our own code cannot settle is parked with its user; machinery parks nothing; everybody else goes on."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from shared.database import is_infrastructure_error, transaction
from shared.errors import NotFound
from shared.payments.isolate import LaneFailed, settle_in_parts
from shared.payments.model import TransactionRequest, lane_of
from shared.payments.parked import release, retry_due
from shared.payments.queries import lanes, ledger, parked, users
from shared.payments.reads import get_balance
from shared.payments.settle import work_lanes
from tests.integration.factories import (
    accepted,
    ago,
    deposit,
    new_user,
    new_users,
    outsider,
    plain_engine,
    run_sql,
    settled,
    states,
    stored,
    withdrawal,
)
from tests.integration.planted_bug import UNLUCKY, are_parked

pytestmark = pytest.mark.integration


def attempts(request: TransactionRequest) -> int:
    with transaction() as connection:
        row = parked.find_parked(connection, request.uid)
    assert row
    return row.attempts


def wait_of(request: TransactionRequest, minutes: float) -> None:
    """Let time pass since it was parked."""
    run_sql(
        "UPDATE transactions SET parked_at = clock_timestamp() - make_interval(secs => :seconds) WHERE uid = :uid",
        seconds=minutes * 60,
        uid=str(request.uid),
    )


@pytest.mark.usefixtures("bug")
def test_a_row_that_fails_is_parked_and_others_of_the_lane_go_on() -> None:
    unlucky, other = new_users(2, lane=11)
    before, bad, after = deposit(unlucky, 1), deposit(unlucky, UNLUCKY), deposit(unlucky, 2)
    others = [deposit(other, 3), withdrawal(other, 4)]
    accepted(before, bad, others[0], after, others[1])

    assert work_lanes([11]).counts.parked == 1
    work_lanes([11])
    assert states(before, bad, after, *others) == ["COMPLETED", "PENDING", "PENDING", "COMPLETED", "REJECTED"]
    assert are_parked(before, bad, after) == [False, True, True]
    with transaction() as connection:
        row = parked.find_parked(connection, bad.uid)
    assert row
    assert row.attempts == 1
    assert "planted bug" in str(row.last_error)


@pytest.mark.usefixtures("bug")
def test_a_later_row_is_parked_behind_a_parked_one() -> None:
    unlucky, other = new_users(2, lane=11)
    accepted(bad := deposit(unlucky, UNLUCKY), deposit(other, 1))
    work_lanes([11])
    accepted(behind := deposit(unlucky, 1), free := deposit(other, 1))
    assert are_parked(behind) == [False]
    assert work_lanes([11]).counts.parked == 1
    assert (are_parked(bad, behind), states(behind, free)) == ([True, True], ["PENDING", "COMPLETED"])
    assert attempts(behind) == 0


@pytest.mark.usefixtures("bug")
def test_a_bug_that_hits_every_row_parks_none() -> None:
    users = new_users(3, lane=11)
    accepted(*(rows := [deposit(user, UNLUCKY) for user in users]))
    with pytest.raises(LaneFailed):
        work_lanes([11])
    assert (states(*rows), are_parked(*rows)) == (["PENDING"] * 3, [False] * 3)


@pytest.mark.usefixtures("bug")
def test_a_long_queue_behind_a_bad_row_does_not_block_a_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if it fills a batch: the others, accepted later, are looked at too."""
    unlucky, other = new_users(2, lane=11)
    monkeypatch.setattr("shared.payments.isolate.SETTLE_BATCH_ROWS", 5)
    accepted(bad := deposit(unlucky, UNLUCKY), *[deposit(unlucky, 1) for _ in range(10)], free := deposit(other, 1))
    work_lanes([11])
    assert (states(free), are_parked(bad)) == (["COMPLETED"], [True])


def test_a_released_row_and_all_behind_it_settle_in_their_order(bug: pytest.MonkeyPatch) -> None:
    unlucky, other = new_users(2, lane=11)
    accepted(bad := deposit(unlucky, UNLUCKY), second := withdrawal(unlucky, 10), deposit(other, 1))
    work_lanes([11])
    work_lanes([11])
    accepted(third := withdrawal(unlucky, 3))
    work_lanes([11])
    accepted(fourth := withdrawal(unlucky, 1))  # not parked: its turn has not come
    bug.undo()

    assert release(bad.uid) == 3
    work_lanes([11])
    assert states(bad, second, third, fourth) == ["COMPLETED"] * 3 + ["REJECTED"]
    assert [row.balance_after for row in stored(bad, second, third)] == [13, 3, 0]


def test_only_what_is_parked_can_be_released() -> None:
    settled(done := deposit(new_user(), 1))
    for uid in (done.uid, uuid4()):
        with pytest.raises(NotFound) as raised:
            release(uid)
        assert raised.value.code == "not_parked"


def test_a_parked_row_is_retried_before_its_followers(bug: pytest.MonkeyPatch) -> None:
    unlucky, other = new_users(2, lane=11)
    accepted(bad := deposit(unlucky, UNLUCKY), behind := withdrawal(unlucky, UNLUCKY), deposit(other, 1))
    work_lanes([11])
    work_lanes([11])
    bug.undo()

    assert retry_due() == 0, "a minute has not passed"
    wait_of(bad, minutes=0.9)
    assert retry_due() == 0
    wait_of(bad, minutes=1.1)
    assert retry_due() == 1
    assert are_parked(bad, behind) == [False, True]
    assert retry_due() == 0, "the one before has not been settled yet"
    assert are_parked(bad, behind) == [False, True]

    work_lanes([11])
    assert states(bad, behind) == ["COMPLETED", "PENDING"]
    assert retry_due() == 1
    work_lanes([11])
    assert states(bad, behind) == ["COMPLETED", "COMPLETED"]


@pytest.mark.usefixtures("bug")
def test_a_row_that_fails_again_backs_off_up_to_an_hour() -> None:
    unlucky, other = new_users(2, lane=11)
    accepted(bad := deposit(unlucky, UNLUCKY), deposit(other, 1))
    work_lanes([11])
    for tries, minutes in enumerate([1, 2, 4, 8, 16, 32, 60, 60], start=1):
        assert attempts(bad) == tries
        wait_of(bad, minutes=minutes - 0.1)
        assert retry_due() == 0, tries
        wait_of(bad, minutes=minutes + 0.1)
        assert retry_due() == 1, tries
        work_lanes([11])  # nothing else moves in the lane: it goes back all the same


def test_one_lost_connection_parks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    accepted(row := deposit(new_user(), 1))
    lock_accounts = users.lock_accounts

    def cut(connection: Connection, user_ids: set[int]) -> object:
        monkeypatch.undo()
        run_sql("SELECT pg_terminate_backend(:pid, 1000)", pid=connection.scalar(text("SELECT pg_backend_pid()")))
        return lock_accounts(connection, user_ids)

    monkeypatch.setattr(users, "lock_accounts", cut)
    with pytest.raises(DBAPIError) as raised:
        work_lanes([lane_of(row.user_id)])
    assert is_infrastructure_error(raised.value)
    assert (states(row), are_parked(row)) == (["PENDING"], [False])
    assert work_lanes([lane_of(row.user_id)]).counts.settled == 1


@contextmanager
def rows_locked(table: str, column: str, value: object) -> Iterator[None]:
    with outsider() as holder:
        holder.execute(text(f"SELECT FROM {table} WHERE {column} = :value FOR UPDATE"), {"value": str(value)})
        yield


@pytest.mark.parametrize("setting", ["statement_timeout", "lock_timeout"])
def test_a_time_out_parks_nothing(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    """57014 and 55P03: another program holds the user's row."""
    user = new_user()
    accepted(row := deposit(user, 1))
    read_pending = lanes.read_pending

    def hurried(connection: object, *args: object) -> object:
        connection.execute(text(f"SET LOCAL {setting} = '50ms'"))  # type: ignore[attr-defined]
        return read_pending(connection, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(lanes, "read_pending", hurried)
    with rows_locked("users", "id", user), pytest.raises(DBAPIError) as raised:
        work_lanes([lane_of(user)])
    assert is_infrastructure_error(raised.value)
    assert (states(row), are_parked(row)) == (["PENDING"], [False])


def test_a_past_that_takes_too_long_to_read_is_parked_like_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also 57014, but of this row alone: waiting would not mend it, and would hold up its lane for ever."""
    slow, other = new_users(2, lane=11)
    settled(deposit(slow, 5, ago(days=2)), deposit(slow, 5))
    accepted(late := withdrawal(slow, 1, ago(days=1)), fine := deposit(other, 1))

    def scan(connection: Connection, *_: object) -> None:
        connection.execute(text("SET LOCAL statement_timeout = '50ms'"))
        connection.execute(text("SELECT pg_sleep(5)"))

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "scan_lowest_balances", scan)
        work_lanes([11])
    assert (states(late, fine), are_parked(late)) == (["PENDING", "COMPLETED"], [True])
    assert release(late.uid) == 1
    work_lanes([11])
    assert states(late) == ["COMPLETED"]


@pytest.mark.usefixtures("bug")
def test_an_infrastructure_error_parks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    first, cut_off, unlucky = new_users(3, lane=11)
    rows = [deposit(first, 1), deposit(cut_off, 1), deposit(unlucky, UNLUCKY)]
    accepted(*rows)
    lock_accounts = users.lock_accounts

    def cut(connection: Connection, user_ids: set[int]) -> object:
        if user_ids == {cut_off}:
            connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return lock_accounts(connection, user_ids)

    monkeypatch.setattr(users, "lock_accounts", cut)
    with pytest.raises(DBAPIError) as raised:
        work_lanes([11])
    assert is_infrastructure_error(raised.value)
    assert (states(*rows), are_parked(*rows)) == (["COMPLETED", "PENDING", "PENDING"], [False] * 3)


@pytest.mark.usefixtures("bug")
def test_a_lane_that_is_busy_is_not_settled_in_parts() -> None:
    unlucky, other = new_users(2, lane=11)
    accepted(bad := deposit(unlucky, UNLUCKY), deposit(other, 1))
    with outsider() as holder:
        assert lanes.try_lock_lanes(holder, [11])
        assert settle_in_parts(11).busy
    assert are_parked(bad) == [False]


def test_an_operators_release_waits_for_a_busy_lane(bug: pytest.MonkeyPatch) -> None:
    """There is nobody who comes back to it: it must not be lost because a worker is at it just then."""
    unlucky, other = new_users(2, lane=11)
    accepted(bad := deposit(unlucky, UNLUCKY), deposit(other, 1))
    work_lanes([11])
    bug.undo()
    with outsider() as holder:
        assert lanes.try_lock_lanes(holder, [11])
        leaves = threading.Timer(0.3, holder.rollback)
        leaves.start()
        assert release(bad.uid) == 1
        leaves.join()


@pytest.mark.usefixtures("bug")
def test_parked_rows_are_listed_by_user_in_accept_order() -> None:
    unlucky, other = new_users(2, lane=11)
    accepted(bad := deposit(unlucky, UNLUCKY), behind := deposit(unlucky, 1), deposit(other, 1))
    work_lanes([11])
    work_lanes([11])
    with transaction() as connection:
        listed = [row for row in parked.list_parked(connection, 100) if row.user_id == unlucky]
        backlog = lanes.read_backlog(connection, 16)
    assert [(row.uid, row.attempts) for row in listed] == [(bad.uid, 1), (behind.uid, 0)]
    assert backlog.parked >= 2
    assert get_balance(unlucky).balance == 0


def test_parked_rows_are_no_backlog(bug: pytest.MonkeyPatch) -> None:
    user, other = new_users(2, lane=11)
    accepted(deposit(user, UNLUCKY), deposit(other, 1))
    work_lanes([11])
    with plain_engine().connect() as connection:
        backlog = lanes.read_backlog(connection, 16)
        assert (backlog.pending, backlog.oldest_seconds, backlog.parked) == (0, 0.0, 1)
        assert lanes.find_overdue_lanes(connection, 16, 0) == []
    accepted(deposit(other, 2))
    with plain_engine().connect() as connection:
        backlog = lanes.read_backlog(connection, 16)
        assert (backlog.pending, backlog.parked) == (1, 1)
        assert backlog.oldest_seconds > 0
        assert lanes.find_overdue_lanes(connection, 16, 0) == [11]
        assert lanes.find_overdue_lanes(connection, 16, 60) == []
