"""The checker is checked: a history that is right passes, and each rule has histories that break it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.faults.checker import RULES, check
from tests.faults.history import Attempt, Books, Document, History, Reading, Recovery, Row

pytestmark = pytest.mark.unit

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
LATE = NOON - timedelta(hours=1)


def document(uid: str, amount: str, status: str = "COMPLETED", **members: Any) -> Document:
    """Accepted at noon; a COMPLETED one was settled then, and is effective then unless a timestamp is given."""
    noon = NOON.isoformat()
    made = {"uid": uid, "user_id": 7, "type": "DEPOSIT", "amount": amount, "status": status, "accepted_at": noon}
    final = {"timestamp": noon if status == "COMPLETED" else None, "settled_at": None if status == "PENDING" else noon}
    return {**made, **final, **members}


def put(uid: str, amount: str, at: float, status: str | None = "PENDING", **members: Any) -> Attempt:
    """An attempt of a second's length; with status None it was cut."""
    shown = None if status is None else document(uid, amount, status, **members)
    content = {"uid": uid, "user_id": 7, "type": "DEPOSIT", "amount": amount, **members}
    return Attempt(uid, content, at, at + 1, None if status is None else 202, shown)


def row(uid: str, seq: int, amount: str, after: str, effective_at: datetime = NOON, **changes: Any) -> Row:
    recorded_at = NOON + timedelta(seconds=seq)
    return Row(
        uid, 7, "COMPLETED", seq, 1, seq, Decimal(amount), Decimal(after), effective_at, recorded_at, 1, seq
    )._replace(**changes)


def reading(minutes: int, balance: str) -> Reading:
    """Asked that long after noon, for half an hour before noon: the entry `c` is effective by then."""
    asked = NOON + timedelta(minutes=minutes)
    return Reading(7, NOON - timedelta(minutes=30), asked, asked, Decimal(balance))


def good() -> tuple[History, Books]:
    """a and b paid in, b cut and repeated; c, a late withdrawal, cannot be: so it is a late deposit; d is rejected."""
    late = {"timestamp": LATE.isoformat()}
    history = History(
        attempts=[
            *(put("a", "5.00", 0), put("b", "2.00", 2, None), put("b", "2.00", 4), put("b", "2.00", 6, "COMPLETED")),
            *(put("c", "1.00", 8, **late), put("d", "9.00", 10, "REJECTED", type="WITHDRAW")),
            put("e", "1.00", 12, None),
        ],
        sightings=[(7, 7.5, document("a", "5.00")), (9, 9.5, document("a", "5.00"))],
        readings=[reading(10, "1.00"), reading(20, "1.00")],
        recoveries=[Recovery("worker_kill", 2.0)],
    )
    statement = [
        *(document("a", "5.00"), document("b", "2.00"), document("c", "1.00", **late)),
        document("d", "9.00", "REJECTED", type="WITHDRAW"),
    ]
    nothing: dict[str, Any] = {"entries": 0, "seq": None, "amount": None, "balance_after": None}
    rejected = row("d", 4, "0", "0")._replace(status="REJECTED", effective_at=None, recorded_at=None, **nothing)
    rows = [
        *(row("a", 1, "5.00", "5.00"), row("b", 2, "2.00", "7.00"), row("c", 3, "1.00", "8.00", LATE)),
        rejected,
    ]
    return history, Books({7: statement}, {7: Decimal("8.00")}, rows, told={7: [1, 2, 2, 1, 3, 4]})


def test_a_history_that_is_right_passes() -> None:
    assert check(*good()) == []


Breaker = Callable[[History, Books], object]


def replace_row(books: Books, uid: str, **changes: Any) -> object:
    books.rows[:] = [one._replace(**changes) if one.uid == uid else one for one in books.rows]
    return books


def remove_from_statement(books: Books, uid: str) -> object:
    books.statements[7] = [one for one in books.statements[7] if one["uid"] != uid]
    return books


def change_shown(books: Books, uid: str, **changes: Any) -> None:
    books.statements[7] = [{**one, **changes} if one["uid"] == uid else one for one in books.statements[7]]


BREAKERS: list[tuple[str, str, Breaker]] = [
    ("accepted_transactions_exist", "an answered uid is in no statement", lambda h, b: remove_from_statement(b, "a")),
    ("accepted_transactions_exist", "its row is gone", lambda h, b: b.rows.pop(0)),
    (
        "accepted_transactions_exist",
        "a rejection was told and is gone",
        lambda h, b: (remove_from_statement(b, "d"), b.rows.pop()),
    ),
    ("all_become_final", "a recovery takes too long", lambda h, b: h.recoveries.append(Recovery("x", 10.1))),
    ("all_become_final", "a uid is stuck", lambda h, b: h.recoveries.append(Recovery("x", 9, ("a",)))),
    ("all_become_final", "PENDING at the end", lambda h, b: change_shown(b, "a", status="PENDING")),
    ("all_become_final", "the row is PENDING", lambda h, b: replace_row(b, "a", status="PENDING", events=0)),
    ("each_happened_once_or_never", "a cut uid happened twice", lambda h, b: replace_row(b, "b", entries=2)),
    ("each_happened_once_or_never", "two rows of one uid", lambda h, b: b.rows.append(b.rows[1])),
    ("each_happened_once_or_never", "shown twice", lambda h, b: b.statements[7].append(document("b", "2.00"))),
    ("each_happened_once_or_never", "nobody sent it", lambda h, b: b.statements[7].append(document("z", "2.00"))),
    ("each_happened_once_or_never", "a rejected one has an entry", lambda h, b: replace_row(b, "d", entries=1)),
    ("each_happened_once_or_never", "a final one has no event", lambda h, b: replace_row(b, "a", events=0)),
    (
        "final_states_never_change",
        "completed, then rejected",
        lambda h, b: h.sightings.append((20, 21, document("a", "5.00", "REJECTED"))),
    ),
    (
        "final_states_never_change",
        "final, then PENDING",
        lambda h, b: h.sightings.append((20, 21, document("a", "5.00", "PENDING"))),
    ),
    ("final_states_never_change", "otherwise at the end", lambda h, b: change_shown(b, "a", status="REJECTED")),
    ("content_is_what_was_first_accepted", "another amount", lambda h, b: change_shown(b, "a", amount="5.01")),
    ("content_is_what_was_first_accepted", "another user", lambda h, b: change_shown(b, "a", user_id=8)),
    ("content_is_what_was_first_accepted", "another type", lambda h, b: change_shown(b, "a", type="WITHDRAW")),
    (
        "content_is_what_was_first_accepted",
        "another instant",
        lambda h, b: change_shown(b, "c", timestamp=NOON.isoformat()),
    ),
    (
        "content_is_what_was_first_accepted",
        "an instant in the future",
        lambda h, b: change_shown(b, "a", timestamp=(NOON + timedelta(seconds=1)).isoformat()),
    ),
    ("money_is_conserved", "a balance too high", lambda h, b: b.balances.update({7: Decimal("8.01")})),
    ("money_is_conserved", "an entry doubled", lambda h, b: b.balances.update({7: Decimal("13.00")})),
    ("no_balance_is_negative", "a wrong snapshot", lambda h, b: replace_row(b, "b", balance_after=Decimal("7.01"))),
    (
        "no_balance_is_negative",
        "below zero now",
        lambda h, b: replace_row(b, "a", amount=Decimal(-5), balance_after=Decimal(-5)),
    ),
    (
        "no_balance_is_negative",
        "below zero in the past",
        lambda h, b: replace_row(b, "c", amount=Decimal(-1), balance_after=Decimal(6)),
    ),
    (
        "each_user_is_settled_in_order",
        "b overtook a",
        lambda h, b: (replace_row(b, "a", user_seq=2), replace_row(b, "b", user_seq=1)),
    ),
    (
        "each_user_is_settled_in_order",
        "d overtook all",
        lambda h, b: (replace_row(b, "d", user_seq=1), replace_row(b, "a", user_seq=4)),
    ),
    (
        "the_past_does_not_change_by_itself",
        "told otherwise later",
        lambda h, b: h.readings.append(reading(30, "1.01")),
    ),
    ("past_balances_are_sums", "never the sum of anything", lambda h, b: h.readings.append(reading(30, "0.50"))),
    ("past_balances_are_sums", "an entry is missing", lambda h, b: h.readings.append(reading(30, "0.00"))),
    (
        "none_is_settled_before_it_is_accepted",
        "the clock of the transaction's start",
        lambda h, b: change_shown(b, "a", settled_at=LATE.isoformat()),
    ),
    (
        "only_a_business_reason_rejects",
        "there was enough",
        lambda h, b: change_shown(b, "d", amount="8.00"),
    ),
    (
        "only_a_business_reason_rejects",
        "there was enough at every instant since",
        lambda h, b: change_shown(b, "d", amount="1.00", timestamp=LATE.isoformat()),
    ),
    (
        "only_a_business_reason_rejects",
        "a deposit",
        lambda h, b: change_shown(b, "d", type="DEPOSIT"),
    ),
    ("every_outcome_is_told_in_order", "one is not told", lambda h, b: b.told[7].remove(4)),
    ("every_outcome_is_told_in_order", "a user hears nothing", lambda h, b: b.told.pop(7)),
    ("every_outcome_is_told_in_order", "3 overtook 2", lambda h, b: b.told.update({7: [1, 3, 2, 4]})),
    ("every_outcome_is_told_in_order", "what never was", lambda h, b: b.told[7].append(5)),
    ("verify_agrees", "it ended with 1", lambda h, b: setattr(b, "verify_exit", 1)),
    ("queues_are_drained_and_nothing_leaks", "a ring is left", lambda h, b: setattr(b, "queued", 1)),
    ("queues_are_drained_and_nothing_leaks", "a leak", lambda h, b: b.leaks.append("a session is idle in transaction")),
]


@pytest.mark.parametrize(("rule", "what", "break_it"), BREAKERS, ids=[f"{rule}: {what}" for rule, what, _ in BREAKERS])
def test_a_rule_finds_what_breaks_it(rule: str, what: str, break_it: Breaker) -> None:
    history, books = good()
    break_it(history, books)
    found = [violation.partition(":")[0] for violation in check(history, books)]
    assert rule in found, (what, found)


def test_every_rule_has_a_history_that_breaks_it() -> None:
    assert {rule.__name__ for rule in RULES} == {rule for rule, _, _ in BREAKERS}


def test_who_was_sent_together_may_be_settled_in_any_order() -> None:
    history, books = good()
    history.attempts[0] = put("a", "5.00", 1.5)  # until 2.5; b was first sent at 2
    replace_row(books, "a", user_seq=2)
    replace_row(books, "b", user_seq=1)
    assert check(history, books) == []


def test_a_late_withdrawal_without_past_funds_is_rejected() -> None:
    history, books = good()
    late = {"type": "WITHDRAW", "amount": "1.01", "timestamp": LATE.isoformat()}
    change_shown(books, "d", **late)
    history.attempts[5] = put("d", "1.01", 10, "REJECTED", type="WITHDRAW", timestamp=LATE.isoformat())
    assert check(history, books) == []


def test_a_past_that_a_late_entry_reaches_may_change() -> None:
    history, books = good()
    late = document("f", "3.00", timestamp=LATE.isoformat())
    history.attempts.append(Attempt("f", late, 20, 21, 202, late))
    history.readings.append(reading(30, "4.00"))
    books.statements[7].append(late)
    books.balances[7] = Decimal("11.00")
    recorded = NOON + timedelta(minutes=25)
    books.rows.append(row("f", 4, "3.00", "11.00", LATE, recorded_at=recorded, user_seq=5, accept_order=5))
    books.told[7].append(5)
    assert check(history, books) == []
