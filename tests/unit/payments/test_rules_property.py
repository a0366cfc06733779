"""Whatever is folded in whatever batches, the rules agree with a list of entries and sums over it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.payments.model import Type
from shared.payments.rules import Account, LowestBalances, Pending, fold, instants_to_scan
from tests.reference_model import NaiveAccount

pytestmark = pytest.mark.unit

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
USERS = (7, 8)


@dataclass(frozen=True)
class Row:
    """A request: no instant, seconds from acceptance that mean "now", or a step on a coarse grid (ties!)."""

    user_id: int
    type: Type
    amount: int
    skew: int | None
    step: int | None

    def pending(self, accepted_at: datetime) -> Pending:
        requested_at = None
        if self.step is not None:
            requested_at = BEGIN + timedelta(seconds=100 * self.step)
        elif self.skew is not None:
            requested_at = accepted_at + timedelta(seconds=self.skew)
        return Pending(UUID(int=1), self.user_id, self.type, self.amount, requested_at, accepted_at)


rows = st.builds(
    Row,
    user_id=st.sampled_from(USERS),
    type=st.sampled_from(Type),
    amount=st.integers(1, 9),
    skew=st.none() | st.sampled_from([-60, -20, 0, 60]),
    step=st.none() | st.integers(0, 15),
)


def moments(number: int) -> tuple[datetime, datetime]:
    """When the batch was accepted, and when it is settled."""
    settled_at = BEGIN + timedelta(seconds=300 * (number + 1))
    return settled_at - timedelta(seconds=30), settled_at


def naive_instant(row: Pending, naive: NaiveAccount, moment: datetime) -> datetime:
    if row.requested_at is not None and row.accepted_at - row.requested_at > timedelta(seconds=60):
        return row.requested_at
    moment = min(moment, row.requested_at or moment)
    return naive.last_instant(moment)


def scan(naive: NaiveAccount, starts: Sequence[datetime]) -> LowestBalances:
    """What the database's scan must answer, by brute force."""
    ends = [*starts[1:], datetime.max.replace(tzinfo=UTC)]
    lowest = []
    for start, end in zip(starts, ends, strict=True):
        instants = [start, *(at for at, _ in naive.entries if start <= at < end)]
        lowest.append(min(naive.balance_at(instant) for instant in instants))
    return LowestBalances(starts, lowest)


@settings(max_examples=250, deadline=None, database=None)
@given(st.lists(st.lists(rows, max_size=8), max_size=5))
def test_the_rules_agree_with_sums_over_a_list(batches: list[list[Row]]) -> None:
    accounts = {user_id: Account(user_id, 0, 0, None, 0) for user_id in USERS}
    naive = {user_id: NaiveAccount() for user_id in USERS}
    for number, batch in enumerate(batches):
        accepted_at, moment = moments(number)
        pending = [row.pending(accepted_at) for row in batch]
        pasts = {}
        for user_id, account in accounts.items():
            if starts := instants_to_scan(account, [row for row in pending if row.user_id == user_id]):
                pasts[user_id] = scan(naive[user_id], starts)

        outcomes, accounts = fold(pending, accounts, pasts, moment)

        for row, outcome in zip(pending, outcomes, strict=True):
            model = naive[row.user_id]
            at = naive_instant(row, model, moment)
            completes = model.settle(row.type, row.amount, at)
            assert completes == (outcome.entry is not None), (row, model.entries)
            assert model.never_negative()
            assert outcome.balance_after == model.balance()
            if outcome.entry:
                assert outcome.entry.effective_at == at
                assert outcome.entry.history_at == model.last_instant(at)
                assert outcome.entry.seq == len(model.entries)
    for user_id, account in accounts.items():
        assert account.balance == naive[user_id].balance()
        assert account.last_seq == len(naive[user_id].entries)
