"""Rows of lists yield to single requests, and no row ever overtakes an earlier one of its user."""

import random
from collections import defaultdict
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from shared.database import transaction
from shared.payments import doorbell, settle
from shared.payments.accept import Accepted, accept
from shared.payments.batch import BULK_SHARE, settle_batch
from shared.payments.isolate import LaneFailed
from shared.payments.model import TransactionRequest
from shared.payments.parked import release
from shared.payments.queries.lanes import find_work
from shared.payments.settle import SliceResult, settle_lanes, work_lanes
from tests.integration.factories import accepted, deposit, new_user, new_users, outsider, run_sql, states
from tests.integration.planted_bug import UNLUCKY, are_parked
from worker.sweep import Sweep

pytestmark = pytest.mark.integration

LANE = 9


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle_batch, "__defaults__", (None, 8))


@pytest.fixture
def doorbell_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of what is done to the doorbell, in the place of a broker."""
    calls: list[str] = []
    for name in ("ring", "set_flags", "clear_flags", "invite"):
        monkeypatch.setattr(doorbell, name, lambda *_, name=name: calls.append(name))
    return calls


def listed(*requests: TransactionRequest) -> None:
    replies = accept(requests, bulk=True)
    assert all(isinstance(reply, Accepted) for reply in replies), replies


def deposits(user_id: int, count: int) -> list[TransactionRequest]:
    return [deposit(user_id, 1) for _ in range(count)]


def settled_order(*requests: TransactionRequest) -> list[int]:
    """The numbers of the users' events, which count what was settled."""
    with transaction() as connection:
        rows = connection.execute(
            text("SELECT uid, user_seq FROM events WHERE uid = ANY(CAST(:uids AS uuid[]))"),
            {"uids": [str(request.uid) for request in requests]},
        )
        found = {row.uid: row.user_seq for row in rows}
    return [found[request.uid] for request in requests]


def test_a_single_request_goes_before_a_list_of_another_user() -> None:
    importer, payer = new_users(2, LANE)
    rows = deposits(importer, 30)
    listed(*rows)
    accepted(payment := deposit(payer, 5))
    settle_batch([LANE])
    assert states(payment) == ["COMPLETED"]
    assert states(*rows).count("COMPLETED") == 7, "the list fills the batch"


def test_a_single_request_waits_for_the_list_of_its_own_user() -> None:
    user, other = new_users(2, LANE)
    listed(*(rows := deposits(user, 20)))
    accepted(after := deposit(user, 5), payment := deposit(other, 5))
    settle_batch([LANE])
    assert states(after, payment) == ["PENDING", "COMPLETED"]
    work_lanes([LANE])
    assert settled_order(*rows, after) == list(range(1, 22))
    accepted(later := deposit(user, 5))
    listed(*deposits(other, 20))
    settle_batch([LANE])
    assert states(later) == ["COMPLETED"], "once its list is settled, the user's requests yield no more"


def test_a_list_row_waits_for_earlier_rows_of_its_user() -> None:
    """Also where so many of others wait before that one that a batch does not reach it."""
    user, crowd = new_users(2, LANE)
    accepted(*deposits(crowd, 12))
    accepted(first := deposit(user, 1))
    listed(second := deposit(user, 1))
    settle_batch([LANE])
    assert states(first, second) == ["PENDING", "PENDING"]
    settle_batch([LANE])
    assert settled_order(first, second) == [1, 2]


def test_single_requests_without_end_leave_lists_their_share() -> None:
    importer, payer = new_users(2, LANE)
    listed(*(rows := deposits(importer, 6)))
    for batch in range(1, 4):
        accepted(*deposits(payer, 8))
        settle_batch([LANE])
        assert states(*rows).count("COMPLETED") == batch * 8 // BULK_SHARE


def test_followers_do_not_overtake_a_released_list_row() -> None:
    user, other = new_users(2, LANE)
    listed(*deposits(other, 20))
    listed(first := deposit(user, 1))
    run_sql("UPDATE transactions SET parked_at = now(), attempts = 1 WHERE uid = :uid", uid=str(first.uid))
    accepted(second := deposit(user, 1))
    assert release(first.uid) == 1
    settle_batch([LANE])
    assert states(first, second) == ["PENDING", "PENDING"]
    work_lanes([LANE])
    assert settled_order(first, second) == [1, 2]


@pytest.mark.usefixtures("bug")
def test_a_failing_list_parks_only_its_bad_row() -> None:
    users = new_users(3, LANE)
    rows = [deposit(user, amount) for user in users for amount in (1, UNLUCKY if user == users[1] else 2, 3)]
    listed(*rows)
    accepted(payment := deposit(new_user(LANE), 5))
    work_lanes([LANE])
    work_lanes([LANE])
    assert states(payment, *rows) == ["COMPLETED"] * 5 + ["PENDING"] * 2 + ["COMPLETED"] * 3
    assert are_parked(*rows[3:6]) == [False, True, True]


def test_a_drain_settles_all_lanes_and_clears_the_flags(doorbell_calls: list[str]) -> None:
    rows = [row for lane in range(6) for row in deposits(new_user(lane), 30)]
    listed(*rows)
    done = work_lanes([0])
    assert (done.counts.settled, states(*rows)) == (180, ["COMPLETED"] * 180)
    assert done.lanes == list(range(6))
    assert doorbell_calls[:3] == ["clear_flags", "invite", "set_flags"], "the first batch rang nobody"
    assert "ring" not in doorbell_calls
    assert doorbell_calls[-1] == "clear_flags"


def test_a_request_at_the_end_of_a_drain_is_not_forgotten(
    doorbell_calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is committed after the drain has looked, and before the keys are deleted: it found a key and rang nobody."""
    listed(*deposits(new_user(LANE), 20))
    late = deposit(new_user(3), 1)

    def commits_first(*_: object) -> None:
        doorbell_calls.append("clear_flags")
        with transaction() as connection:
            work = find_work(connection)
        if doorbell_calls.count("set_flags") and not work.bulk and not work.single and states_known(late) == 0:
            accepted(late)

    monkeypatch.setattr(doorbell, "clear_flags", commits_first)
    work_lanes([LANE])
    assert states(late) == ["COMPLETED"]


def states_known(request: TransactionRequest) -> int:
    with transaction() as connection:
        return int(
            connection.scalar(text("SELECT count(*) FROM transactions WHERE uid = :uid"), {"uid": str(request.uid)})
            or 0
        )


def test_a_drain_whose_time_is_over_invites_another_worker(
    doorbell_calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.payments.settle.SETTLE_SLICE_SECONDS", 0.05)
    listed(*(rows := deposits(new_user(LANE), 2000)))
    work_lanes([LANE])
    assert 0 < states(*rows).count("PENDING") < 2000
    assert doorbell_calls[-1] == "invite"


def test_a_process_that_drains_does_not_sweep(doorbell_calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    listed(*(rows := deposits(new_user(LANE), 100)))
    settle_once = settle._settle_once
    seen: list[tuple[int, bool]] = []

    def look(lanes: list[int]) -> SliceResult:
        seen.append((Sweep().run_once(), work_lanes([LANE]).lists_wait))
        return settle_once(lanes)

    monkeypatch.setattr("shared.payments.settle._settle_once", look)
    work_lanes([LANE])
    assert (0, True) in seen, "another thread settles a batch, and leaves the drain to this one"
    assert {swept for swept, _ in seen} == {0}
    assert doorbell_calls.count("invite") == 1
    assert states(*rows) == ["COMPLETED"] * 100
    assert not settle.is_draining()


def test_a_drain_goes_round_a_lane_that_is_busy_elsewhere(doorbell_calls: list[str]) -> None:
    here, there = deposits(new_user(LANE), 30), deposits(new_user(LANE + 1), 30)
    listed(*here, *there)
    with outsider() as holder:
        holder.execute(text("SELECT pg_advisory_xact_lock(7411, :lane)"), {"lane": LANE + 1})
        done = work_lanes([LANE])
    assert (states(*here), states(*there).count("PENDING")) == (["COMPLETED"] * 30, 30)
    assert done.counts.settled == 30


@pytest.mark.usefixtures("bug")
def test_a_lane_that_fails_keeps_a_drain_from_no_other(doorbell_calls: list[str]) -> None:
    failing, fine = new_user(LANE), deposits(new_user(LANE + 1), 30)
    listed(deposit(failing, UNLUCKY), *fine)
    with pytest.raises(LaneFailed):
        work_lanes([LANE + 1])
    assert states(*fine) == ["COMPLETED"] * 30
    assert doorbell_calls[-1] == "clear_flags"
    run_sql("UPDATE transactions SET parked_at = now() WHERE user_id = :user AND status = 'PENDING'", user=failing)


@pytest.mark.parametrize("seed", range(12))
def test_lists_and_single_requests_keep_each_users_order(seed: int) -> None:
    """With batches of eight rows and several lanes; what is sent after an answer is settled after it."""
    chance = random.Random(seed)
    users = [new_user(LANE), new_user(LANE), new_user(LANE), new_user(LANE + 1)]
    sent: dict[int, list[TransactionRequest]] = defaultdict(list)
    for _ in range(60):
        act = chance.random()
        if act < 0.3:
            rows = [deposit(chance.choice(users[:2]), 1) for _ in range(chance.randint(1, 12))]
            listed(*rows)
        elif act < 0.7:
            rows = [deposit(chance.choice(users), 1) for _ in range(chance.randint(1, 5))]
            accepted(*rows)
        else:
            rows = []
            settle_batch([LANE] if chance.random() < 0.5 else [LANE, LANE + 1], draining=chance.random() < 0.5)
        for row in rows:
            sent[row.user_id].append(row)
    work_lanes([LANE, LANE + 1])
    for rows in sent.values():
        assert settled_order(*rows) == list(range(1, len(rows) + 1))


def test_how_much_waits_is_counted_with_the_lists() -> None:
    accepted(single := deposit(new_user(LANE), 1))
    listed(bulk := deposit(new_user(LANE + 1), 1))
    with transaction() as connection:
        work = find_work(connection)
    assert (LANE in work.single, LANE in work.bulk, LANE + 1 in work.bulk) == (True, False, True)
    assert settle_lanes([LANE, LANE + 1]).counts.settled == 2
    assert states(single, bulk) == ["COMPLETED"] * 2
