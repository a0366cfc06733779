"""The line to Postgres is cut at the COMMIT: nobody is told whether it happened, and it counts once or not at all."""

import pytest

from tests.faults.line_faults import accepts, settles
from tests.faults.paying import COMPLETED_ONCE, add_user, balance, payment, put, state, wait_final
from tests.faults.proxy import Line
from tests.faults.stack import Stack
from tests.kit.http import Http

pytestmark = pytest.mark.system

CUT_SECONDS = 10
AFTER_OR_BEFORE = pytest.mark.parametrize("after", [True, False], ids=["after", "before"])


@AFTER_OR_BEFORE
def test_a_repeat_resolves_an_unknown_commit(stack: Stack, http: Http, after: bool) -> None:
    user_id = add_user(http)
    content = payment(user_id, "10.00")
    cut = stack.postgres.cut_commits(accepts, after=after)
    first = put(http, content)
    assert cut.done.is_set()
    assert first
    assert (first.status, first.headers["Retry-After"]) == (503, "1"), first
    assert (state(stack, content["uid"]) is not None) == after, "committed though the client cannot know it, or not"
    second = put(http, content, wait=10)
    assert second
    assert (second.status, "Idempotency-Replayed" in second.headers) == (200, after), second
    assert wait_final(stack, content["uid"]) == COMPLETED_ONCE
    assert balance(http, user_id) == "10.00"


def test_accepted_without_an_answer_is_settled_without_a_repeat(stack: Stack, http: Http) -> None:
    """The client never comes back: the row is there, and no ring was sent for it."""
    user_id = add_user(http)
    content = payment(user_id, "10.00")
    stack.postgres.cut_commits(accepts)
    first = put(http, content)
    assert first
    assert first.status == 503
    assert wait_final(stack, content["uid"]) == COMPLETED_ONCE
    assert balance(http, user_id) == "10.00"


@AFTER_OR_BEFORE
def test_settling_cut_at_the_commit_moves_the_money_once(stack: Stack, http: Http, after: bool) -> None:
    """All of the balance is paid out: a second time would be refused, and a rejection would be for good."""
    user_id = add_user(http, balance="10.00")
    content = payment(user_id, "10.00", "WITHDRAW")
    cut = stack.postgres.cut_commits(settles, after=after)
    answer = put(http, content)
    assert answer
    assert answer.status == 202
    assert cut.done.wait(CUT_SECONDS), "no settling commit came by"
    assert wait_final(stack, content["uid"]) == COMPLETED_ONCE
    repeat = put(http, content)
    assert repeat
    assert (repeat.status, repeat.json["balance_after"]) == (200, "0.00"), repeat
    assert balance(http, user_id) == "0.00"


def test_settling_cut_at_many_commits_in_a_row(stack: Stack, http: Http) -> None:
    """Every settling commit of this user is cut five times, by turns after and before it happened."""
    user_id = add_user(http, balance="50.00")
    mine = f'"{user_id}"'

    def settles_mine(line: Line) -> bool:
        return settles(line) and any(mine in statement for statement in line.statements)

    uids = []
    for number in range(5):
        content = payment(user_id, "10.00", "WITHDRAW")
        cut = stack.postgres.cut_commits(settles_mine, after=number % 2 == 0)
        assert put(http, content)
        assert cut.done.wait(CUT_SECONDS), "no settling commit came by"
        uids.append(content["uid"])
    assert [wait_final(stack, uid) for uid in uids] == [COMPLETED_ONCE] * 5
    assert balance(http, user_id) == "0.00"
