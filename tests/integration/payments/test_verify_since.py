"""`verify --since` sees every difference in what is new, and says honestly what it does not see: the proved part."""

import json
import random
from collections.abc import Iterator
from uuid import UUID

import pytest
from sqlalchemy import text

from shared.database import transaction
from shared.payments.model import RowCounts, lane_of
from shared.payments.queries import verification, verification_since
from shared.payments.settle import settle_lanes
from shared.payments.verify import Findings, record, verify
from tests.integration.conftest import empty_database, migrate
from tests.integration.factories import (
    accepted,
    ago,
    deposit,
    new_user,
    new_users,
    plain_engine,
    run_sql,
    settled,
    withdrawal,
)
from tests.integration.payments.test_verify import (
    ANN,
    BEN,
    CAT,
    DAN,
    HARMS,
    Harm,
    corrupt,
    delete,
    settling_meanwhile,
    update,
    update_user,
    using,
    using_copy_of,
)

pytestmark = pytest.mark.integration

# These are of rows that no event and no entry of a user leads to, or of users that do not exist.
SEEN_BY_WHOLE_ALONE = {
    ("the user", "None"),
    ("a reason", "true"),  # of a PENDING transaction
    ("a known status", "false"),  # the same
}


@pytest.fixture(scope="module")
def proved_books(server_url: str, database_url: str) -> Iterator[str]:
    """As the good books of test_verify; then a recorded proof of everything."""
    with empty_database(server_url) as url:
        migrate(url)
        with using(url):
            assert new_users(4) == [ANN, BEN, CAT, DAN]
            days = [ago(days=days) for days in range(11)]
            settled(
                deposit(ANN, 10000, days[10], UUID(int=1)),
                withdrawal(ANN, 3000, days[5], UUID(int=2)),
                deposit(ANN, 2000, days[8], UUID(int=3)),
                withdrawal(ANN, 4000, days[9], UUID(int=4)),
                withdrawal(ANN, 9000, uid=UUID(int=5)),
                deposit(ANN, 100, uid=UUID(int=6)),
                deposit(BEN, 500, days[2], UUID(int=7)),
                withdrawal(BEN, 500, days[2], UUID(int=8)),
                deposit(DAN, 700, uid=UUID(int=9)),
            )
            accepted(deposit(DAN, 800, uid=UUID(int=10)))
            proved = whole(keep=True)
            record(proved)
            assert proved.differences == 0
        yield url


@pytest.fixture
def books(proved_books: str) -> Iterator[None]:
    with using_copy_of(proved_books):
        yield


def whole(*, keep: bool = False) -> Findings:
    *_, findings = verify(keep=keep)
    assert findings.whole
    return findings


def new(*, keep: bool = False) -> Findings:
    *_, findings = verify(since=True, keep=keep)
    assert not findings.whole
    return findings


def forget_marks() -> None:
    """The whole counts as proved, and yet everything is new: what each statement must then find is all there is."""
    run_sql("DELETE FROM verification_marks")


def test_nothing_new_is_nothing_to_check(books: None) -> None:
    assert new() == Findings(RowCounts(), whole=False)


def test_what_is_new_is_counted_and_proved_only_once(books: None) -> None:
    settled(
        deposit(ANN, 50, ago(days=20)),
        withdrawal(ANN, 40, ago(days=7)),
        withdrawal(ANN, 10**9),
        deposit(BEN, 5),
    )
    found = RowCounts(users=2, entries=3, completed=3, rejected=1)
    assert new() == Findings(found, whole=False)
    assert new(keep=True) == Findings(found, whole=False)
    assert new() == Findings(RowCounts(), whole=False)
    settle_lanes([lane_of(DAN)])
    assert new().counts == RowCounts(users=1, entries=1, completed=1)


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: f"{harm.what}: {harm.found}")
def test_each_harm_to_the_new_part_is_found(harm: Harm, books: None, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_marks()
    assert new().differences == 0
    corrupt(*harm.statements)
    for range_users in (1000, 1):
        monkeypatch.setattr(verification_since, "CHANGED_RANGE_USERS", range_users)
        findings = new()
        seen = [d for d in findings.first if d.user_id == harm.user_id]
        assert bool(seen) == ((harm.what, str(harm.found)) not in SEEN_BY_WHOLE_ALONE), findings.first
        assert findings.differences == len(findings.first)


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: f"{harm.what}: {harm.found}")
def test_a_harm_to_the_proved_part_is_found_by_the_whole_alone(harm: Harm, books: None) -> None:
    corrupt(*harm.statements)
    of_the_users_row = any("UPDATE users" in statement for statement in harm.statements)
    seen = [difference for difference in new().first if difference.user_id]  # the others are of missing constraints
    assert bool(seen) == of_the_users_row, "a user's row is compared each time"
    assert whole().differences > 0


NEW_HARMS = {
    "an entry is gone": delete("ledger", 22),
    "the last entry is gone": delete("ledger", 23),
    "the first new entry is gone": delete("ledger", 21),
    "an amount": update("ledger", 22, "amount = amount - 1"),
    "a balance_after": update("ledger", 21, "balance_after = balance_after + 1"),
    "the user's balance": update_user(ANN, "balance = balance + 1"),
    "the user's last_seq": update_user(ANN, "last_seq = last_seq - 1"),
    "the user's row as it was at the proof": update_user(ANN, "last_seq = last_seq - 3"),
    "a past instant": update("ledger", 22, "effective_at = effective_at - interval '30 days'"),
    "the transaction's amount": update("transactions", 22, "amount = amount + 1"),
    "the transaction's status": update("transactions", 23, "status = 'REJECTED', reason = 'insufficient_funds'"),
    "the rejected one's status": update("transactions", 24, "status = 'COMPLETED', reason = NULL"),
    "a transaction is gone": delete("transactions", 24),
    "the first new event is gone": delete("events", 21),
    "the last event is gone": delete("events", 24),
    "all new events are gone": "DELETE FROM events WHERE user_id = 1 AND user_seq > 6",
}


@pytest.mark.parametrize("statement", NEW_HARMS.values(), ids=NEW_HARMS)
def test_harm_behind_a_proved_part_is_found_until_it_is_mended(statement: str, books: None) -> None:
    settled(
        deposit(ANN, 9000, uid=UUID(int=21)),
        withdrawal(ANN, 100, ago(days=5), UUID(int=22)),
        deposit(ANN, 30, uid=UUID(int=23)),
        withdrawal(ANN, 10**9, uid=UUID(int=24)),
        deposit(BEN, 1),
    )
    assert new().differences == 0
    corrupt(statement)
    for _ in range(2):  # a difference gives no mark
        findings = new(keep=True)
        assert findings.differences > 0
        assert {difference.user_id for difference in findings.first} == {ANN}
    assert whole().differences > 0


def test_without_a_recent_full_proof_all_is_checked(books: None) -> None:
    def last() -> Findings:
        *_, findings = verify(since=True)
        return findings

    assert not last().whole
    record(Findings(RowCounts(), whole=False, differences=1))
    assert not last().whole, "that one saw only what was new"
    run_sql("UPDATE verifications SET finished_at = clock_timestamp() - interval '7 days' WHERE whole")
    assert last().whole
    record(Findings())
    assert not last().whole
    record(Findings(differences=1))
    assert last().whole, "a difference in the proved part would not be seen"
    run_sql("DELETE FROM verifications")
    assert last().whole


def test_events_may_be_pruned_before_they_are_proved(books: None) -> None:
    settled(deposit(ANN, 1), deposit(ANN, 2), deposit(BEN, 1))
    corrupt("DELETE FROM events WHERE user_id = 1 AND user_seq <= 7", "DELETE FROM events WHERE user_id = 2")
    assert new().differences == 0


@pytest.mark.parametrize("seed", range(4))
def test_proofs_of_the_new_part_agree_with_the_whole(books: None, seed: int) -> None:
    """Any payments, late ones and withdrawals among them, with a proof now and then, and at last a harm in the new part."""
    rng = random.Random(seed)
    users = [ANN, BEN, CAT, DAN, *new_users(3)]
    for _ in range(6):
        requests = [
            rng.choice((deposit, withdrawal))(
                rng.choice(users), rng.randint(1, 3000), rng.choice((None, ago(days=rng.randint(1, 30))))
            )
            for _ in range(rng.randint(1, 25))
        ]
        outcomes = settled(*requests)
        assert new().differences == whole().differences == 0
        if rng.random() < 0.5:
            assert new(keep=True).differences == 0
            assert new() == Findings(RowCounts(), whole=False)
            before = whole().counts
        else:
            before = None
        settled(last := deposit(rng.choice(users), 1))
        assert outcomes
        if before:
            assert new().counts.entries == whole().counts.entries - before.entries
    corrupt(f"UPDATE ledger SET amount = amount + 1 WHERE uid = '{last.uid}'")
    assert new().differences > 0
    assert whole().differences > 0


def test_it_is_exact_while_payments_are_being_settled(books: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification_since, "CHANGED_RANGE_USERS", 2)
    with settling_meanwhile():
        seen = [new(keep=True) for _ in range(40)]
    assert {findings.differences for findings in seen} == {0}
    assert sum(findings.counts.entries for findings in seen) + new().counts.entries == whole().counts.entries - 8


def test_reads_grow_with_what_is_new(books: None) -> None:
    user = new_user()
    settled(*(deposit(user, 1, ago(days=1)) for _ in range(1500)))
    assert new(keep=True).differences == 0
    settled(deposit(user, 1), withdrawal(user, 1, ago(minutes=5)))
    run_sql("ANALYZE")
    read = {}
    with transaction() as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))  # the tables are small
        users = verification.UserRange(0, verification.MAX_ID)
        for number, statement in enumerate((*verification_since._STATEMENTS, verification_since._COUNT)):
            explained = text(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement.text}")
            plan = connection.scalar(explained, {**users._asdict(), "limit": 20})
            read[number] = rows_read(plan[0]["Plan"] if not isinstance(plan, str) else json.loads(plan)[0]["Plan"])
    assert max(read.values()) < 60, read


def rows_read(node: dict[str, object]) -> float:
    """By the scans of the large tables."""
    below = sum(rows_read(child) for child in node.get("Plans", []))  # type: ignore[attr-defined]
    if node.get("Relation Name") not in ("ledger", "transactions", "events"):
        return below
    rows = sum(float(str(node.get(name, 0))) for name in ("Actual Rows", "Rows Removed by Filter"))
    return below + rows * float(str(node["Actual Loops"]))


def test_a_row_records_which_kind_it_was(books: None) -> None:
    record(new())
    with plain_engine().connect() as connection:
        kinds = connection.scalars(text("SELECT whole FROM verifications ORDER BY id")).all()
    assert kinds == [True, False]
