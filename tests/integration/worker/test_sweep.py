"""The sweep settles what no ring brought anybody to, with Postgres alone."""

import pytest

import shared.payments.rules
from shared.database import transaction
from shared.payments.model import LANES, lane_of
from shared.payments.queries import lanes
from shared.payments.queries.lanes import find_overdue_lanes
from tests.integration.factories import accepted, deposit, new_user, new_users, outsider, run_sql, states
from worker import sweep

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def everything_is_overdue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "LANE_OVERDUE_SECONDS", 0.0)


def test_overdue_lanes_are_settled() -> None:
    accepted(*(rows := [deposit(user, 1) for user in new_users(20)]))
    assert sweep.Sweep().run_once() == 20
    assert states(*rows) == ["COMPLETED"] * 20


def test_the_sweep_leaves_new_rows_to_the_doorbell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "LANE_OVERDUE_SECONDS", 30.0)
    accepted(row := deposit(new_user(), 1))
    assert sweep.Sweep().run_once() == 0
    assert states(row) == ["PENDING"]


def test_a_busy_lane_does_not_hold_up_the_others() -> None:
    (user,), (other,) = new_users(1, lane=3), new_users(1, lane=4)
    accepted(here := deposit(user, 1), elsewhere := deposit(other, 1))
    with outsider() as holder:
        assert lanes.try_lock_lanes(holder, [3])
        assert sweep.Sweep().run_once() == 1
    assert states(here, elsewhere) == ["PENDING", "COMPLETED"]


def test_a_lane_that_fails_rests_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    (unlucky,), (other,) = new_users(1, lane=3), new_users(1, lane=4)
    judge, tries = shared.payments.rules.judge, []

    def stumble(row: shared.payments.rules.Pending, *others: object) -> object:
        if row.user_id == unlucky:
            tries.append(row)
            raise ZeroDivisionError
        return judge(row, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(shared.payments.rules, "judge", stumble)
    accepted(deposit(unlucky, 1), fine := deposit(other, 1))
    sweeps = sweep.Sweep()
    assert sweeps.run_once() == 1
    tried = len(tries)
    assert sweeps.run_once() == 0
    assert states(fine) == ["COMPLETED"]
    assert len(tries) == tried, "it rests"


def test_rows_accepted_by_a_clock_that_was_ahead_are_swept_too() -> None:
    """After a step back of the clock, or on a standby whose clock is behind, they would else wait for it."""
    user = new_user()
    run_sql(f"""
        INSERT INTO transactions (uid, user_id, type, amount, accept_order, accepted_at)
        VALUES (gen_random_uuid(), {user}, 'DEPOSIT', 5, nextval('transactions_accept_order_seq'),
                clock_timestamp() + interval '10 minutes')
    """)
    with transaction() as connection:
        assert find_overdue_lanes(connection, LANES, 1) == [lane_of(user)]
