"""A lane that fails is settled in parts: no user's rows, lock or past stand in the way of another's for ever."""

import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from shared.database import is_infrastructure_error
from shared.payments.batch import Batch, settle_batch
from shared.payments.isolate import LaneFailed
from shared.payments.parked import release, retry_due
from shared.payments.settle import work_lanes
from tests.integration.factories import accepted, deposit, new_users, outsider, run_sql, states
from tests.integration.planted_bug import UNLUCKY, are_parked

pytestmark = pytest.mark.integration

LANE = 11


@pytest.mark.usefixtures("bug")
def test_a_failing_row_is_parked_despite_another_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unlucky, other, third = new_users(3, lane=LANE)
    accepted(bad := deposit(unlucky, UNLUCKY), fine := deposit(other, 1), deposit(third, 1))

    def busy_for_the_third(lanes: list[int], user_id: int | None = None, limit: int = 500) -> Batch | None:
        return None if user_id == third else settle_batch(lanes, user_id, limit)

    with monkeypatch.context() as patch:
        patch.setattr("shared.payments.isolate.settle_batch", busy_for_the_third)
        assert work_lanes([LANE]).busy
    assert (states(fine), are_parked(bad)) == (["COMPLETED"], [True])


@pytest.mark.usefixtures("bug")
def test_any_number_of_bad_rows_ahead_hides_no_good_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.payments.isolate.USER_PAGE_SIZE", 3)
    *unlucky, last = new_users(8, lane=LANE)
    bad = [deposit(user, UNLUCKY) for user in unlucky]
    accepted(*bad, fine := deposit(last, 1))
    assert work_lanes([LANE]).counts.settled == 1
    assert states(fine) == ["COMPLETED"]
    assert are_parked(*bad) == [True] * len(bad)


@pytest.mark.usefixtures("bug")
def test_a_lane_of_nothing_but_bad_rows_parks_none() -> None:
    bad = [deposit(user, UNLUCKY) for user in new_users(3, lane=LANE)]
    accepted(*bad)
    with pytest.raises(LaneFailed):
        work_lanes([LANE])
    assert are_parked(*bad) == [False] * 3


def test_a_lock_on_one_users_row_holds_up_that_user_alone() -> None:
    """Held by another program, for as long as it likes: passed over, not parked, and told as what it is."""
    held, *others = new_users(3, lane=LANE)
    rows = [deposit(user, 1) for user in (held, *others)]
    accepted(*rows)
    with outsider() as holder:
        holder.execute(text("SELECT FROM users WHERE id = :held FOR UPDATE"), {"held": held})
        with pytest.raises(DBAPIError) as raised:
            work_lanes([LANE])
        assert is_infrastructure_error(raised.value)
        assert states(*rows) == ["PENDING", "COMPLETED", "COMPLETED"]
    assert are_parked(rows[0]) == [False]
    work_lanes([LANE])
    assert states(rows[0]) == ["COMPLETED"]


def test_a_lock_on_one_parked_row_keeps_no_other_parked(bug: pytest.MonkeyPatch) -> None:
    first, second, other = new_users(3, lane=LANE)
    bad = [deposit(first, UNLUCKY), deposit(second, UNLUCKY)]
    accepted(*bad, deposit(other, 1))
    work_lanes([LANE])
    bug.undo()
    run_sql("UPDATE transactions SET parked_at = '2020-01-01' WHERE uid = :uid", uid=str(bad[0].uid))
    run_sql("UPDATE transactions SET parked_at = '2021-01-01' WHERE uid = :uid", uid=str(bad[1].uid))
    with outsider() as holder:
        holder.execute(text("SELECT FROM transactions WHERE uid = :uid FOR UPDATE"), {"uid": str(bad[0].uid)})
        assert retry_due() == 1
        assert are_parked(*bad) == [True, False]
    assert retry_due() == 1


def test_many_followers_are_released_in_batches_and_in_order(
    bug: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.payments.parked.RELEASE_BATCH_ROWS", 2)
    unlucky, other = new_users(2, lane=LANE)
    rows = [deposit(unlucky, UNLUCKY), *[deposit(unlucky, number) for number in range(1, 6)]]
    accepted(*rows, deposit(other, 1))
    work_lanes([LANE])
    work_lanes([LANE])
    assert are_parked(*rows) == [True] * 6
    bug.undo()
    run_sql("UPDATE transactions SET parked_at = '2020-01-01' WHERE uid = :uid", uid=str(rows[0].uid))
    assert retry_due() == 1, "the head alone"
    for left in (3, 1, 0):
        work_lanes([LANE])
        assert retry_due() <= 2
        assert sum(are_parked(*rows)) == left
    work_lanes([LANE])
    assert states(*rows) == ["COMPLETED"] * 6


def test_an_operator_releases_all_at_once(bug: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.payments.parked.RELEASE_BATCH_ROWS", 2)
    unlucky, other = new_users(2, lane=LANE)
    rows = [deposit(unlucky, UNLUCKY), *[deposit(unlucky, 1) for _ in range(4)]]
    accepted(*rows, deposit(other, 1))
    work_lanes([LANE])
    work_lanes([LANE])
    bug.undo()
    assert release(rows[0].uid) == 5
    work_lanes([LANE])
    assert states(*rows) == ["COMPLETED"] * 5


def test_waiting_in_our_queue_makes_no_now_too_old() -> None:
    """A client's clock 59 s slow, and a request that waited 10 s to be accepted: still "now", so not late."""
    (user,) = new_users(1)
    accepted(deposit(user, 100))
    work_lanes([user % 16])
    with outsider() as connection:
        stamp = connection.scalar(text("SELECT clock_timestamp() - interval '65 seconds'"))
    asked = deposit(user, 1)._replace(type="WITHDRAW", requested_at=stamp, arrived=time.monotonic() - 10)
    (reply,) = accepted(asked)
    assert 54 < (reply.transaction.accepted_at - stamp).total_seconds() < 57
    work_lanes([user % 16])
    assert states(asked) == ["COMPLETED"]
