"""Several users' accounts against a model that keeps nothing but lists: whatever is asked, in whatever order.

The model judges by brute force over all instants, without the service's shortcuts, one payment at a time.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from shared.errors import Conflict
from shared.payments.accept import Accepted, accept
from shared.payments.model import Status, TransactionRequest, Type, lane_of
from shared.payments.reads import get_balance
from shared.payments.settle import settle_lanes
from tests.integration.factories import clock, new_users, stored
from tests.reference_model import NaiveAccount

pytestmark = pytest.mark.integration

AMOUNTS = st.integers(1, 50)
HOURS = st.none() | st.integers(0, 40)  # after the beginning; None: now
TYPES = st.sampled_from(Type)
USERS = st.integers(0, 2)


@dataclass
class Account:
    """What the model knows of a user: what waits, in order, and what was settled."""

    user_id: int
    waiting: list[TransactionRequest] = field(default_factory=list)
    books: NaiveAccount = field(default_factory=NaiveAccount)


class Accounts(RuleBasedStateMachine):
    """Two users of one lane and one of another."""

    requests = Bundle("requests")

    @initialize()
    def open_accounts(self) -> None:
        first, second = new_users(2, lane=3)
        (third,) = new_users(1, lane=4)
        self.accounts = {user_id: Account(user_id) for user_id in (first, second, third)}
        self.order = [first, second, third]
        self.beginning = clock() - timedelta(days=10)
        self.final: dict[object, Status] = {}

    @rule(
        target=requests,
        items=st.lists(st.tuples(USERS, TYPES, AMOUNTS, HOURS), min_size=1, max_size=4),
    )
    def ask(self, items: list[tuple[int, Type, int, int | None]]) -> object:
        """New transactions, accepted together."""
        asked = []
        for user, type_, amount, hours in items:
            at = None if hours is None else self.beginning + timedelta(hours=hours)
            asked.append(TransactionRequest(uuid4(), self.order[user], type_, amount, at))
        for request, reply in zip(asked, accept(asked), strict=True):
            assert isinstance(reply, Accepted)
            assert (reply.replayed, reply.transaction.status) == (False, Status.PENDING)
            self.accounts[request.user_id].waiting.append(request)
        return multiple(*asked)

    @rule(request=requests)
    def repeat(self, request: TransactionRequest) -> None:
        """Twice in one list: both are told how it stands."""
        for reply in accept([request, request]):
            assert isinstance(reply, Accepted)
            assert (reply.replayed, reply.transaction.amount) == (True, request.amount)
            assert reply.transaction.status == self.final.get(request.uid, Status.PENDING)

    @rule(request=requests, more=AMOUNTS)
    def reuse(self, request: TransactionRequest, more: int) -> None:
        """The uid with other content is refused, and nothing comes of it."""
        (reply,) = accept([request._replace(amount=request.amount + more)])
        assert isinstance(reply, Conflict)
        assert reply.code == "uid_reused"

    @rule(user=USERS)
    def settle(self, user: int) -> None:
        """The lane of a user; the model settles what waited in it, one by one."""
        lane = lane_of(self.order[user])
        before = clock()
        settle_lanes([lane])
        after = clock()
        for account in self.accounts.values():
            if lane_of(account.user_id) == lane:
                while account.waiting:
                    self._settle_one(account, account.waiting.pop(0), before, after)

    def _settle_one(self, account: Account, request: TransactionRequest, before: datetime, after: datetime) -> None:
        (found,) = stored(request)
        assert found.settled_at is not None
        assert before <= found.settled_at <= after
        at = request.requested_at or account.books.last_instant(found.settled_at)
        allowed = account.books.settle(request.type, request.amount, at)
        wanted = (
            (Status.COMPLETED, None, at, account.books.balance())
            if allowed
            else (Status.REJECTED, "insufficient_funds", None, None)
        )
        assert (found.status, found.reason, found.effective_at, found.balance_after) == wanted, (request, account)
        self.final[request.uid] = found.status

    @rule(user=USERS, hours=st.integers(-1, 41))
    def look_at_the_past(self, user: int, hours: int) -> None:
        account = self.accounts[self.order[user]]
        instant = self.beginning + timedelta(hours=hours)
        assert get_balance(account.user_id, instant).balance == account.books.balance_at(instant)

    @invariant()
    def balances_agree_and_never_were_negative(self) -> None:
        for account in getattr(self, "accounts", {}).values():
            assert get_balance(account.user_id).balance == account.books.balance()
            assert account.books.never_negative()


Accounts.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestAccounts = Accounts.TestCase
