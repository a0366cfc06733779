"""One commit settles several lanes; what holds up one of them holds up no other; where rows pile up, each goes alone."""

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from shared.database import transaction
from shared.payments import doorbell
from shared.payments.batch import settle_batch
from shared.payments.queries import lanes
from shared.payments.settle import settle_lanes, work_lanes
from tests.integration.factories import accepted, ago, deposit, new_user, outsider, settled, states, withdrawal
from tests.integration.planted_bug import UNLUCKY, are_parked

pytestmark = pytest.mark.integration

ONE, TWO, THREE = 1, 2, 3


@pytest.fixture
def rung_lanes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[int]]]:
    """The lanes of each ring, in the place of a broker."""
    rings: list[list[int]] = []
    monkeypatch.setattr(doorbell, "ring", lambda sources, *, own_message: rings.append(list(sources)))
    return rings


def test_lanes_rung_together_are_settled_in_one_commit() -> None:
    rows = [deposit(new_user(lane), 5) for lane in (ONE, TWO, THREE)]
    accepted(*rows)
    batch = settle_batch([ONE, TWO, THREE])
    assert batch
    assert ([o.pending.uid for o in batch.outcomes], batch.unfinished_lanes) == ([row.uid for row in rows], set())
    with transaction() as connection:
        commits = connection.scalar(
            text("SELECT count(DISTINCT xmin::text) FROM ledger WHERE uid = ANY(CAST(:uids AS uuid[]))"),
            {"uids": [str(row.uid) for row in rows]},
        )
    assert commits == 1


def test_a_lane_that_is_busy_elsewhere_is_left_out() -> None:
    rows = [deposit(new_user(lane), 5) for lane in (ONE, TWO)]
    accepted(*rows)
    with outsider() as holder:
        assert lanes.try_lock_lanes(holder, [ONE]) == [ONE]
        batch = settle_batch([ONE, TWO])
        assert batch
        assert batch.lanes == [TWO]
        assert states(*rows) == ["PENDING", "COMPLETED"]
        assert settle_batch([ONE]) is None
    assert settle_lanes([ONE, TWO]).counts.settled == 1


def test_with_a_backlog_one_lane_is_kept_and_others_rung_for(
    rung_lanes: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle_batch, "__defaults__", (None, 6))
    rows = {lane: [deposit(user, 1) for _ in range(10)] for lane in (ONE, TWO, THREE) for user in [new_user(lane)]}
    accepted(*rows[ONE], *rows[TWO], *rows[THREE])
    done = settle_lanes([ONE, TWO, THREE])
    assert rung_lanes == [[TWO], [THREE]]
    assert done.counts.settled == 10 + 2 + 2
    assert [states(*rows[lane]).count("PENDING") for lane in rows] == [0, 8, 8]


def test_only_a_lane_that_was_rung_meanwhile_is_settled_again(
    rung_lanes: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = new_user(ONE), new_user(TWO)
    late = deposit(two, 7)
    asked: list[list[int]] = []

    def is_rung(of: list[int], _settled: object) -> set[int]:
        asked.append(of)
        if len(asked) > 1:
            return set()
        accepted(late)
        return {TWO}

    monkeypatch.setattr(doorbell, "publish_settled_and_find_flags", is_rung)
    accepted(deposit(one, 1), deposit(two, 1))
    assert settle_lanes([ONE, TWO]).counts.settled == 3
    assert asked == [[ONE, TWO], [TWO]]
    assert states(late) == ["COMPLETED"]


def test_a_long_past_is_scanned_for_its_lane_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or every lane of the commit would wait for it."""
    monkeypatch.setattr("shared.payments.batch.MAX_SCANNED_ENTRIES", 1)
    long, other, third = new_user(ONE), new_user(TWO), new_user(ONE)
    settled(deposit(long, 5, ago(days=2)), deposit(long, 5))
    accepted(
        before := deposit(third, 1),
        late := withdrawal(long, 4, ago(days=1)),
        after := deposit(third, 1),
        beside := deposit(other, 1),
    )
    batch = settle_batch([ONE, TWO])
    assert batch
    assert batch.unfinished_lanes == {ONE}
    assert states(before, late, after, beside) == ["COMPLETED", "PENDING", "PENDING", "COMPLETED"]
    assert settle_lanes([ONE, TWO]).counts.settled == 2
    assert states(late, after) == ["COMPLETED"] * 2


@pytest.mark.usefixtures("bug")
def test_a_row_of_one_lane_that_fails_keeps_no_other_lane() -> None:
    unlucky, same, other = new_user(ONE), new_user(ONE), new_user(TWO)
    accepted(bad := deposit(unlucky, UNLUCKY), beside := deposit(same, 1), elsewhere := deposit(other, 1))
    done = work_lanes([ONE, TWO])
    assert (done.counts.settled, done.counts.parked) == (2, 1)
    assert (are_parked(bad), states(beside, elsewhere)) == ([True], ["COMPLETED"] * 2)


def test_a_user_who_is_locked_elsewhere_keeps_no_other_lane() -> None:
    held, other = new_user(ONE), new_user(TWO)
    accepted(waits := deposit(held, 1), goes_on := deposit(other, 1))
    with outsider() as holder:
        holder.execute(text("SELECT FROM users WHERE id = :id FOR UPDATE"), {"id": held})
        with pytest.raises(Exception, match="lock timeout"):
            work_lanes([ONE, TWO])
        assert states(waits, goes_on) == ["PENDING", "COMPLETED"]
    assert work_lanes([ONE, TWO]).counts.settled == 1
