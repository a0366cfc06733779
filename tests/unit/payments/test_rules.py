"""The rules of money, row by row. NOW is Postgres's clock after the locks; OLD is long before any acceptance."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from shared.money import MAX_BALANCE
from shared.payments.model import EventType, Reason, Status, Type
from shared.payments.rules import Account, LowestBalances, Pending, effective_instant, fold, instants_to_scan, judge

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
OLD = NOW - timedelta(days=30)
OLDER = OLD - timedelta(seconds=1)
OLDEST = OLD - timedelta(days=1)
TICK = timedelta(microseconds=1)


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def deposit(amount: int, at: datetime | None = None, accepted: datetime = NOW, user_id: int = 7) -> Pending:
    return Pending(UUID(int=amount), user_id, Type.DEPOSIT, amount, at, accepted)


def withdrawal(amount: int, at: datetime | None = None, accepted: datetime = NOW, user_id: int = 7) -> Pending:
    return Pending(UUID(int=amount), user_id, Type.WITHDRAW, amount, at, accepted)


def account(balance: int = 0, history: datetime | None = None, user_id: int = 7) -> Account:
    return Account(user_id, balance, last_seq=3 if history else 0, last_history_at=history, last_event_seq=5)


def fold_one(batch: list[Pending], before: Account, pasts: Mapping[int, LowestBalances] | None = None) -> list[Status]:
    return [outcome.status for outcome in fold(batch, {before.user_id: before}, pasts or {}, NOW)[0]]


@pytest.mark.parametrize(
    ("requested", "accepted", "history", "effective"),
    [
        # no timestamp: the moment of settling, never before the last history
        (None, NOW, None, NOW),
        (None, NOW - seconds(3600), None, NOW),
        (None, NOW, NOW - seconds(1), NOW),
        (None, NOW, NOW + seconds(5), NOW + seconds(5)),
        # within 60 s of acceptance, either side: the client's "now"
        (NOW - seconds(60), NOW, None, NOW - seconds(60)),
        (NOW + seconds(60), NOW, None, NOW),
        (NOW - seconds(30), NOW, NOW - seconds(10), NOW - seconds(10)),
        (NOW - seconds(30), NOW, NOW - seconds(40), NOW - seconds(30)),
        (NOW + seconds(30), NOW, NOW + seconds(5), NOW + seconds(5)),
        # the queue's delay takes nothing away: it is acceptance that counts
        (NOW - seconds(3630), NOW - seconds(3600), None, NOW - seconds(3630)),
        (NOW - seconds(3630), NOW - seconds(3600), NOW - seconds(1), NOW - seconds(1)),
        # older: kept, be it late or not
        (NOW - seconds(60) - TICK, NOW, None, NOW - seconds(60) - TICK),
        (NOW - seconds(60) - TICK, NOW, NOW, NOW - seconds(60) - TICK),
        (OLD, NOW, OLDER, OLD),
        (OLD, NOW, OLD, OLD),
        (OLDER, NOW, OLD, OLDER),
    ],
)
def test_the_instant_of_an_entry(
    requested: datetime | None, accepted: datetime, history: datetime | None, effective: datetime
) -> None:
    assert effective_instant(deposit(1, requested, accepted), account(9, history), NOW) == effective


@pytest.mark.parametrize(
    ("row", "before", "past", "reason"),
    [
        (deposit(1), account(0), None, None),
        (deposit(1), account(MAX_BALANCE - 1), None, None),
        (deposit(1), account(MAX_BALANCE), None, Reason.BALANCE_LIMIT),
        (withdrawal(5), account(5), None, None),
        (withdrawal(6), account(5), None, Reason.INSUFFICIENT_FUNDS),
        (withdrawal(1), account(0), None, Reason.INSUFFICIENT_FUNDS),
        # at or after the last history only the balance counts
        (withdrawal(5, NOW - seconds(90)), account(5, NOW - seconds(90)), LowestBalances([OLD], [0]), None),
        # late: the lowest balance from its instant on counts too
        (withdrawal(5, OLD), account(9, NOW), LowestBalances([OLD, NOW], [5, 9]), None),
        (withdrawal(6, OLD), account(9, NOW), LowestBalances([OLD, NOW], [5, 9]), Reason.INSUFFICIENT_FUNDS),
        (withdrawal(6, OLD), account(5, NOW), LowestBalances([OLD, NOW], [9, 5]), Reason.INSUFFICIENT_FUNDS),
        (withdrawal(6, OLD), account(9, NOW), LowestBalances([OLDER, OLD, NOW], [0, 7, 9]), None),
    ],
)
def test_the_reason_to_reject(
    row: Pending, before: Account, past: LowestBalances | None, reason: Reason | None
) -> None:
    assert judge(row, before, past, effective_instant(row, before, NOW)) == reason


def test_what_one_row_does_the_next_one_sees() -> None:
    batch = [withdrawal(1), deposit(10), withdrawal(7), withdrawal(4), withdrawal(3)]
    assert fold_one(batch, account()) == ["REJECTED", "COMPLETED", "COMPLETED", "REJECTED", "COMPLETED"]


def test_an_outcome_carries_the_entry_and_the_event() -> None:
    before = account(10, OLD)
    outcomes, after = fold([withdrawal(4), withdrawal(7), deposit(2, OLDER)], {7: before}, {}, NOW)
    completed, rejected, late = outcomes

    assert completed.entry
    assert (completed.entry.seq, completed.entry.amount, completed.entry.balance_after) == (
        4,
        -4,
        6,
    )
    assert (completed.entry.effective_at, completed.entry.history_at) == (NOW, NOW)
    assert (completed.event, completed.user_seq) == (EventType.COMPLETED, 6)
    assert (completed.balance_before, completed.balance_after) == (10, 6)

    assert rejected.entry is None
    assert rejected.reason == Reason.INSUFFICIENT_FUNDS
    assert (rejected.event, rejected.user_seq) == (EventType.REJECTED, 7)
    assert (rejected.balance_before, rejected.balance_after) == (6, 6)

    assert late.entry
    assert (late.entry.seq, late.entry.balance_after, late.user_seq) == (5, 8, 8)
    assert (late.entry.effective_at, late.entry.history_at) == (OLDER, NOW)

    assert after[7] == Account(7, 8, last_seq=5, last_history_at=NOW, last_event_seq=8)
    assert before == account(10, OLD), "fold leaves what it is given alone"


@pytest.mark.parametrize(
    ("row", "before", "past", "lowest"),
    [
        (withdrawal(6, OLD), account(9, NOW), LowestBalances([OLD, NOW], [5, 9]), 5),
        (withdrawal(9, OLD), account(9, NOW), LowestBalances([OLD, NOW], [0, 9]), 0),
        (withdrawal(6, OLD), account(5, NOW), LowestBalances([OLD, NOW], [4, 5]), None),  # not covered now either
        (withdrawal(6), account(5, NOW), None, None),
        (withdrawal(5, OLD), account(9, NOW), LowestBalances([OLD, NOW], [5, 9]), None),  # completes
        (deposit(1, OLD), account(MAX_BALANCE, NOW), None, None),
    ],
)
def test_a_late_rejection_carries_the_lowest_balance(
    row: Pending, before: Account, past: LowestBalances | None, lowest: int | None
) -> None:
    (outcome,), _ = fold([row], {7: before}, {7: past} if past else {}, NOW)
    assert outcome.lowest_balance == lowest


def test_users_of_one_batch_do_not_touch_each_other() -> None:
    accounts = {7: account(5), 8: account(0, user_id=8)}
    outcomes, after = fold([withdrawal(5, user_id=7), withdrawal(5, user_id=8)], accounts, {}, NOW)
    assert [o.status for o in outcomes] == ["COMPLETED", "REJECTED"]
    assert (after[7].balance, after[8].balance) == (0, 0)


@pytest.mark.parametrize("skew", [-30, 30])
def test_a_client_clock_off_by_30_seconds_rejects_nothing(skew: int) -> None:
    batch = [deposit(5), withdrawal(5, NOW + seconds(skew))]
    assert fold_one(batch, account()) == ["COMPLETED", "COMPLETED"]


def test_entries_of_one_instant_count_together() -> None:
    assert fold_one([deposit(5, OLD), deposit(9), withdrawal(5, OLD)], account()) == ["COMPLETED"] * 3


def test_a_withdrawal_before_its_deposit_is_rejected() -> None:
    assert fold_one([deposit(5, OLD), withdrawal(5, OLDER)], account()) == ["COMPLETED", "REJECTED"]


def test_a_batch_mate_counts_against_a_late_withdrawal() -> None:
    batch = [deposit(5, OLD), deposit(5), withdrawal(3, OLD), withdrawal(3, OLD)]
    assert fold_one(batch, account()) == ["COMPLETED", "COMPLETED", "COMPLETED", "REJECTED"]


def test_a_late_deposit_pays_for_a_late_withdrawal_after_it() -> None:
    past = {7: LowestBalances([OLD, NOW], [0, 9])}
    assert fold_one([deposit(4, OLDER), withdrawal(4, OLD)], account(9, NOW), past) == ["COMPLETED"] * 2


def test_a_past_counts_an_entry_from_its_instant_on() -> None:
    past = LowestBalances([OLDEST, OLD], [4, 6])
    past.record(OLD, -5)
    assert (past.lowest_from(OLDEST), past.lowest_from(OLD)) == (1, 1)
    past.record(OLDEST, 3)
    assert (past.lowest_from(OLDEST), past.lowest_from(OLD)) == (4, 4)


def test_a_past_grows_by_instants_after_the_last_history() -> None:
    past = LowestBalances([OLD], [6])
    past.record(NOW, -5)
    past.record(NOW + TICK, 9)
    assert [past.lowest_from(at) for at in (OLD, NOW, NOW + TICK)] == [1, 1, 10]


@pytest.mark.parametrize(
    ("batch", "before", "starts"),
    [
        ([withdrawal(5, OLD)], account(5, NOW), [OLD, NOW]),
        ([withdrawal(5, OLD), withdrawal(1, OLDER), deposit(2, OLD)], account(5, NOW), [OLDER, OLD, NOW]),
        ([deposit(1, OLDEST), withdrawal(5, OLD)], account(5, NOW), [OLD, NOW]),  # lifts all that is scanned
        ([deposit(1, OLD), withdrawal(6, OLDER)], account(5, NOW), [OLDER, OLD, NOW]),  # a batch-mate may pay
        ([withdrawal(5, OLD)], account(4, NOW), []),  # could not pass the cheap test
        ([withdrawal(5, OLD)], account(5, OLD), []),  # not late
        ([withdrawal(5, OLD)], account(5), []),  # no history yet
        ([withdrawal(5, NOW - seconds(60))], account(5, NOW), []),  # means "now"
        ([deposit(5, OLD)], account(5, NOW), []),
        ([withdrawal(5)], account(5, NOW), []),
    ],
)
def test_only_a_late_withdrawal_that_could_pass_needs_a_scan(
    batch: list[Pending], before: Account, starts: list[datetime]
) -> None:
    assert instants_to_scan(before, batch) == starts
