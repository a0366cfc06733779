"""Past balances, and late entries: what lies before what is already recorded."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError

from shared.database import transaction
from shared.errors import NotFound
from shared.payments.batch import settle_batch
from shared.payments.model import StatementFilter, Status, TransactionRequest, Type, lane_of
from shared.payments.queries import ledger
from shared.payments.reads import Balance, get_balance, get_statement, get_transaction, get_user
from shared.payments.rules import LowestBalances, Outcome
from shared.payments.settle import settle_lanes
from tests.integration.factories import accepted, ago, clock, deposit, new_user, new_users, settled, states, withdrawal
from tests.reference_model import NaiveAccount

pytestmark = pytest.mark.integration

Line = tuple[Type, int, int | None]

TICK = timedelta(microseconds=1)


def balance_at(user_id: int, instant: datetime) -> int:
    return get_balance(user_id, instant).balance


def test_a_balance_counts_entries_up_to_the_instant() -> None:
    user, noon = new_user(), ago(days=2)
    settled(deposit(user, 100, noon), withdrawal(user, 30, noon + timedelta(hours=1)))
    hour = timedelta(hours=1)
    found = [balance_at(user, noon + after) for after in (-hour, -TICK, hour * 0, hour - TICK, hour, hour + TICK)]
    assert found == [0, 0, 100, 100, 70, 70]


def test_an_instant_in_the_future_is_answered_with_now() -> None:
    user = new_user()
    settled(deposit(user, 100))
    answer = get_balance(user, clock() + timedelta(days=1))
    assert answer == Balance(user, 100, answer.instant)
    assert answer.instant <= clock()
    assert get_balance(user).balance == 100


def test_what_no_user_can_be_called_is_not_found() -> None:
    for user_id in (-1, 0, 2**62, 2**63, 10**30):
        for look in (get_user, get_balance):
            with pytest.raises(NotFound):
                look(user_id)
        with pytest.raises(NotFound):
            get_statement(user_id, StatementFilter(), None, 10)


def test_a_transaction_that_does_not_exist_is_not_found() -> None:
    with pytest.raises(NotFound):
        get_transaction(deposit(1, 1).uid)


def test_the_ends_of_time_can_be_asked_for() -> None:
    user = new_user()
    settled(deposit(user, 100, datetime.min.replace(tzinfo=clock().tzinfo)))
    assert balance_at(user, datetime.min.replace(tzinfo=clock().tzinfo)) == 100
    assert balance_at(user, datetime.max.replace(tzinfo=clock().tzinfo)) == 100


def test_a_late_entry_changes_balances_from_its_instant_on() -> None:
    user, early, late, last = new_user(), ago(days=3), ago(days=2), ago(days=1)
    settled(deposit(user, 10, early), deposit(user, 20, last))
    before = [balance_at(user, at) for at in (early, late - TICK, late, last)]
    settled(deposit(user, 5, late))
    assert before == [10, 10, 10, 30]
    assert [balance_at(user, at) for at in (early, late - TICK, late, last)] == [10, 10, 15, 35]


def test_a_withdrawal_before_its_money_came_is_rejected() -> None:
    user = new_user()
    settled(deposit(user, 10, ago(days=2)), deposit(user, 20, ago(days=1)))
    rows = [withdrawal(user, 11, ago(days=1, hours=1)), withdrawal(user, 10, ago(days=1, hours=1))]
    assert settled(*rows) == ["REJECTED", "COMPLETED"]


def test_a_withdrawal_that_makes_the_past_negative_is_rejected() -> None:
    user = new_user()
    settled(deposit(user, 10, ago(days=3)), withdrawal(user, 8, ago(days=2)), deposit(user, 50, ago(days=1)))
    assert settled(withdrawal(user, 3, ago(days=2, hours=12))) == ["REJECTED"]
    assert settled(withdrawal(user, 2, ago(days=2, hours=12))) == ["COMPLETED"]


def test_entries_of_one_instant_count_together() -> None:
    user, instant = new_user(), ago(days=1)
    settled(deposit(user, 9))
    assert settled(deposit(user, 5, instant), withdrawal(user, 5, instant)) == ["COMPLETED"] * 2
    assert (balance_at(user, instant - TICK), balance_at(user, instant)) == (0, 0)


def test_batch_mates_count_against_a_late_withdrawal() -> None:
    user = new_user()
    settled(deposit(user, 5, ago(days=2)), deposit(user, 5))
    rows = [
        withdrawal(user, 3, ago(days=1)),
        withdrawal(user, 3, ago(days=1, hours=1)),
        withdrawal(user, 2, ago(days=1)),
    ]
    assert settled(*rows) == ["COMPLETED", "REJECTED", "COMPLETED"]


def late_withdrawals_of_three_users() -> list[TransactionRequest]:
    users = new_users(3, lane=9)
    settled(*[deposit(user, 5, ago(days=2)) for user in users], *[deposit(user, 5) for user in users])
    rows = [withdrawal(user, amount, ago(days=1)) for amount in (4, 1, 1) for user in users]
    accepted(*rows)
    return rows


def test_long_pasts_are_scanned_one_user_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With pasts of two entries each, and three allowed: the second user waits, and all rows after."""
    rows = late_withdrawals_of_three_users()
    monkeypatch.setattr("shared.payments.batch.MAX_SCANNED_ENTRIES", 3)
    first = settle_batch([9])
    assert first is not None
    assert first.unfinished_lanes
    assert [outcome.pending.uid for outcome in first.outcomes] == [rows[0].uid]
    settle_lanes([9])
    assert states(*rows) == ["COMPLETED"] * 6 + ["REJECTED"] * 3


def test_short_pasts_are_scanned_together() -> None:
    rows = late_withdrawals_of_three_users()
    only = settle_batch([9])
    assert only is not None
    assert (len(only.outcomes), only.unfinished_lanes) == (len(rows), set())
    assert states(*rows) == ["COMPLETED"] * 6 + ["REJECTED"] * 3


def allow_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch off the rule for late withdrawals: what is left is the database's own."""
    monkeypatch.setattr(LowestBalances, "lowest_from", lambda self, instant: 2**62)


@contextmanager
def refused_by_the_database() -> Iterator[None]:
    with pytest.raises(IntegrityError) as raised:
        yield
    assert raised.value.orig.diag.constraint_name == "ledger_past_not_negative"  # type: ignore[union-attr]


def test_without_our_rules_the_database_refuses_a_negative_past(monkeypatch: pytest.MonkeyPatch) -> None:
    user = new_user()
    settled(deposit(user, 5, ago(days=2)), withdrawal(user, 5, ago(days=1)), deposit(user, 5))
    accepted(row := withdrawal(user, 1, ago(days=1, hours=1)))
    with monkeypatch.context() as patch:
        allow_all(patch)
        with refused_by_the_database():
            settle_batch([lane_of(user)])
    assert states(row) == ["PENDING"]
    settle_lanes([lane_of(user)])
    assert states(row) == ["REJECTED"]


@pytest.mark.parametrize("size", [None, 1])
def test_without_our_rules_the_database_counts_batch_mates(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    """Two late withdrawals of which either alone would do, written by one statement or by two."""
    user = new_user()
    settled(deposit(user, 5, ago(days=2)), deposit(user, 5))
    accepted(withdrawal(user, 3, ago(days=1)), withdrawal(user, 3, ago(days=1, hours=1)))
    allow_all(monkeypatch)
    with refused_by_the_database():
        for _ in range(2):
            settle_batch([lane_of(user)], limit=size or 500)


def test_the_database_alone_allows_what_a_batch_mate_pays_for(monkeypatch: pytest.MonkeyPatch) -> None:
    user, instant = new_user(), ago(days=1)
    settled(deposit(user, 5))
    allow_all(monkeypatch)
    assert settled(deposit(user, 3, instant), withdrawal(user, 3, instant)) == ["COMPLETED"] * 2


# What a client sends: type, amount, and the age of its timestamp in seconds, if it has one; a grid, so that instants
# are often the same, and what means "now".
ages = st.none() | st.sampled_from([-40, 0, 55]) | st.integers(2, 12).map(lambda step: step * 100)
lines = st.tuples(st.sampled_from(Type), st.integers(1, 9), ages)
batches = st.tuples(st.lists(lines, min_size=1, max_size=12), st.integers(1, 8))  # and how many rows a commit takes


@hypothesis(
    max_examples=60,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.lists(batches, min_size=1, max_size=4))
def test_any_account_has_the_history_of_a_list_of_entries(batches: list[tuple[list[Line], int]]) -> None:
    user, naive, begin = new_user(), NaiveAccount(), clock()
    for batch, size in batches:
        accepted(*[request_of(user, line, begin) for line in batch])
        while (done := settle_batch([lane_of(user)], user, size)) and done.outcomes:
            assert done.moment
            for outcome in done.outcomes:
                assert_as_naive(outcome, naive, done.moment)
            assert_same_history(user, naive)


def request_of(user_id: int, line: Line, begin: datetime) -> TransactionRequest:
    type_, amount, age = line
    at = None if age is None else begin - timedelta(seconds=age)
    return (deposit if type_ == Type.DEPOSIT else withdrawal)(user_id, amount, at)


def assert_as_naive(outcome: Outcome, naive: NaiveAccount, moment: datetime) -> None:
    row = outcome.pending
    if row.requested_at is None or row.accepted_at - row.requested_at <= timedelta(seconds=60):
        at = naive.last_instant(min(moment, row.requested_at or moment))
    else:
        at = row.requested_at
    assert naive.settle(row.type, row.amount, at) == (outcome.status == Status.COMPLETED), (row, naive.entries)
    assert outcome.entry is None or outcome.entry.effective_at == at


def assert_same_history(user_id: int, naive: NaiveAccount) -> None:
    """At every entry's instant, a microsecond to either side, and halfway to the next."""
    ats = sorted({at for at, _ in naive.entries})
    between = [one + (other - one) / 2 for one, other in pairwise(ats)]
    asked = [at + tick for at in ats for tick in (-TICK, TICK * 0, TICK)] + between
    with transaction() as connection:
        found = [ledger.get_balance_at(connection, user_id, at) for at in asked]
    assert found == [naive.balance_at(at) for at in asked], (asked, naive.entries)
