"""What the database refuses by itself, whoever asks: also the owner of the tables, also our code with a bug in it."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from tests.integration.factories import accepted, deposit, new_user, outsider, settled, withdrawal

pytestmark = pytest.mark.integration

REFUSED = "23001"  # restrict_violation, raised by our triggers
NOT_UNIQUE, CHECKED, GENERATED = "23505", "23514", "428C9"
INSERT = "INSERT INTO transactions (uid, user_id, type, amount, accept_order, accepted_at"
ENTRY = "INSERT INTO ledger (user_id, seq, uid, amount, balance_after, effective_at, history_at, recorded_at)"


@pytest.fixture
def names() -> dict[str, object]:
    """A user with a COMPLETED, a REJECTED and a PENDING transaction: what the statements below speak of."""
    user = new_user()
    settled(done := deposit(user, 10), rejected := withdrawal(user, 11))
    accepted(pending := deposit(user, 1))
    return {"user": user, "done": str(done.uid), "rejected": str(rejected.uid), "pending": str(pending.uid)}


@pytest.mark.parametrize(
    ("statement", "pgcode", "says"),
    [
        ("UPDATE ledger SET amount = 1", REFUSED, "the ledger is append-only"),
        ("UPDATE ledger SET amount = 1 WHERE false", REFUSED, "the ledger is append-only"),
        ("DELETE FROM ledger", REFUSED, "the ledger is append-only"),
        ("TRUNCATE ledger", REFUSED, "the ledger is append-only"),
        ("UPDATE operator_actions SET actor = 'nobody' WHERE false", REFUSED, "operator actions are append-only"),
        ("DELETE FROM operator_actions", REFUSED, "operator actions are append-only"),
        ("TRUNCATE operator_actions", REFUSED, "operator actions are append-only"),
        ("DELETE FROM transactions WHERE uid = '{pending}'", REFUSED, "kept for ever"),
        ("TRUNCATE transactions", REFUSED, "kept for ever"),
        ("DELETE FROM users WHERE id = {user}", REFUSED, "kept for ever"),
        ("TRUNCATE users, ledger, transactions CASCADE", REFUSED, "refused: TRUNCATE"),
        # a final status is final
        ("UPDATE transactions SET status = 'PENDING', settled_at = NULL WHERE uid = '{done}'", REFUSED, "final"),
        ("UPDATE transactions SET status = 'REJECTED', reason = 'x' WHERE uid = '{done}'", REFUSED, "final"),
        ("UPDATE transactions SET status = 'COMPLETED', reason = NULL WHERE uid = '{rejected}'", REFUSED, "final"),
        ("UPDATE transactions SET reason = 'other' WHERE uid = '{rejected}'", REFUSED, "final"),
        # what was accepted stays as it was
        ("UPDATE transactions SET uid = gen_random_uuid() WHERE uid = '{pending}'", REFUSED, "never changes"),
        ("UPDATE transactions SET user_id = user_id + 1 WHERE uid = '{pending}'", REFUSED, "never changes"),
        ("UPDATE transactions SET type = 'WITHDRAW' WHERE uid = '{pending}'", REFUSED, "never changes"),
        ("UPDATE transactions SET amount = 2 WHERE uid = '{pending}'", REFUSED, "never changes"),
        ("UPDATE transactions SET requested_at = now() WHERE uid = '{pending}'", REFUSED, "never changes"),
        ("UPDATE transactions SET accepted_at = now() WHERE uid = '{pending}'", REFUSED, "never changes"),
        ("UPDATE transactions SET accept_order = 0 WHERE uid = '{pending}'", REFUSED, "never changes"),
        ("UPDATE transactions SET lane = 0 WHERE uid = '{pending}'", GENERATED, "lane"),
        # a transaction begins as PENDING, with a positive amount, once
        (
            f"{INSERT}, status, settled_at) VALUES (gen_random_uuid(), 1, 'DEPOSIT', 1, 1, now(), 'COMPLETED', now())",
            REFUSED,
            "begins as PENDING",
        ),
        (f"{INSERT}) VALUES (gen_random_uuid(), 1, 'DEPOSIT', 0, 1, now())", CHECKED, "transactions_amount_check"),
        (f"{INSERT}) VALUES (gen_random_uuid(), 1, 'REFUND', 1, 1, now())", CHECKED, "transactions_type_check"),
        (f"{INSERT}) VALUES (gen_random_uuid(), 0, 'DEPOSIT', 1, 1, now())", CHECKED, "transactions_user_id_check"),
        (f"{INSERT}) VALUES ('{{done}}', 1, 'DEPOSIT', 1, 1, now())", NOT_UNIQUE, "transactions_pkey"),
        # a status, its reason and its time belong together
        ("UPDATE transactions SET status = 'COMPLETED' WHERE uid = '{pending}'", CHECKED, "transactions_settled_check"),
        ("UPDATE transactions SET settled_at = now() WHERE uid = '{pending}'", CHECKED, "transactions_settled_check"),
        ("UPDATE transactions SET reason = 'x' WHERE uid = '{pending}'", CHECKED, "transactions_reason_check"),
        (
            "UPDATE transactions SET status = 'COMPLETED', settled_at = now(), parked_at = now() WHERE uid = '{pending}'",
            *(CHECKED, "transactions_parked_check"),
        ),
        # no balance below zero, no entry twice, none before its own instant
        ("UPDATE users SET balance = -1 WHERE id = {user}", CHECKED, "users_balance_not_negative"),
        ("UPDATE users SET balance = 9000000000000000001 WHERE id = {user}", CHECKED, "users_balance_limit"),
        (
            f"{ENTRY} VALUES ({{user}}, 2, '{{pending}}', -11, -1, now(), now(), now())",
            CHECKED,
            "ledger_balance_after_not_negative",
        ),
        (f"{ENTRY} VALUES ({{user}}, 2, '{{pending}}', 0, 10, now(), now(), now())", CHECKED, "ledger_amount_check"),
        (f"{ENTRY} VALUES ({{user}}, 0, '{{pending}}', 1, 11, now(), now(), now())", CHECKED, "ledger_seq_check"),
        (f"{ENTRY} VALUES ({{user}}, 2, '{{done}}', 1, 11, now(), now(), now())", NOT_UNIQUE, "ledger_uid_key"),
        (f"{ENTRY} VALUES ({{user}}, 1, '{{pending}}', 1, 11, now(), now(), now())", NOT_UNIQUE, "ledger_pkey"),
        (
            f"{ENTRY} VALUES ({{user}}, 2, '{{pending}}', 1, 11, now(), now() - interval '1 s', now())",
            CHECKED,
            "ledger_history_check",
        ),
        (
            f"{ENTRY} VALUES ({{user}}, 2, '{{pending}}', -1, 9, '2020-01-01', now(), now())",
            CHECKED,
            "would have been -1 at a past instant",
        ),
        # an outcome is told once
        (
            "INSERT INTO events (lane, user_id, user_seq, type, uid, balance_before, balance_after, occurred_at)"
            " VALUES (0, {user}, 1, 'transaction.completed', '{done}', 0, 0, now())",
            *(NOT_UNIQUE, "events_user_id_user_seq_key"),
        ),
    ],
)
def test_the_database_refuses(names: dict[str, object], statement: str, pgcode: str, says: str) -> None:
    with outsider() as owner, pytest.raises(DBAPIError) as raised:
        owner.execute(text(statement.format(**names)))
    assert raised.value.orig is not None
    assert (raised.value.orig.pgcode, says in str(raised.value.orig)) == (pgcode, True), raised.value.orig  # type: ignore[attr-defined]


def test_what_settling_and_parking_do_is_allowed(names: dict[str, object]) -> None:
    with outsider() as owner:
        for change in (
            "parked_at = now(), attempts = 1, last_error = 'x'",
            "parked_at = NULL",
            "status = 'REJECTED', reason = 'insufficient_funds', settled_at = now()",
        ):
            owner.execute(text("UPDATE transactions SET {} WHERE uid = '{pending}'".format(change, **names)))
