"""`verify` is green on good books, and red for every single thing that it says it checks.

The good books are made once, by the service's own code. Each test gets a copy, in which it breaks what it likes.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest.mock import ANY
from uuid import UUID

import pytest
from sqlalchemy import make_url

from shared import database
from shared.errors import NotReady
from shared.health import unsafe_settings
from shared.payments.model import RowCounts, lane_of
from shared.payments.queries import guards, verification
from shared.payments.settle import settle_lanes
from shared.payments.verify import MAX_SHOWN_DIFFERENCES, Findings, verify
from shared.server import ServerState
from tests.integration.conftest import drop_database, empty_database, forget_settings, migrate
from tests.integration.factories import accepted, ago, deposit, new_users, plain_engine, run_sql, settled, withdrawal

pytestmark = pytest.mark.integration

ANN, BEN, CAT, DAN = 1, 2, 3, 4  # the ids of the first users of a database; Cat never pays


@contextmanager
def using(url: str) -> Iterator[None]:
    """Within it, the code under test works on this database."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", url)
        forget_settings()
        try:
            yield
        finally:
            database.engine().dispose()
    forget_settings()


@pytest.fixture(scope="module")
def good_books(server_url: str, database_url: str) -> Iterator[str]:
    """Two late entries, two at one instant, a rejection, a row that is PENDING, a user without anything."""
    with empty_database(server_url) as url:
        migrate(url)
        with using(url):
            assert new_users(4) == [ANN, BEN, CAT, DAN]
            days = [ago(days=days) for days in range(11)]
            outcomes = settled(
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
            assert [outcome[0] for outcome in outcomes] == list("CCCCRCCCC")
            accepted(deposit(DAN, 800, uid=UUID(int=10)))
        yield url


@pytest.fixture
def books(good_books: str) -> Iterator[None]:
    """A copy of the good books, which the code under test then works on."""
    with using_copy_of(good_books):
        yield


@contextmanager
def using_copy_of(url: str) -> Iterator[None]:
    good = make_url(url)
    copy = good.set(database=f"{good.database}_copy")
    maintenance = plain_engine("postgres")
    with maintenance.connect() as connection:
        drop_database(connection, str(copy.database))
        connection.exec_driver_sql(f'CREATE DATABASE "{copy.database}" TEMPLATE "{good.database}"')
    try:
        with using(copy.render_as_string(hide_password=False)):
            yield
    finally:
        with maintenance.connect() as connection:
            drop_database(connection, str(copy.database))


def verified() -> Findings:
    *_, findings = verify()
    return findings


def corrupt(*statements: str) -> None:
    """What no program can do while the guards are in force: only who owns the tables."""
    for switch, middle in (("DISABLE", statements), ("ENABLE", ())):
        for table in ("users", "transactions", "ledger", "events"):
            run_sql(f"ALTER TABLE {table} {switch} TRIGGER ALL")
        for statement in middle:
            run_sql(statement)


def without(constraint: str) -> str:
    return f"ALTER TABLE {constraint.partition('_')[0]} DROP CONSTRAINT {constraint}"


class Harm(NamedTuple):
    """What is spoilt, in which row, and by which statements; and what verify must say of it."""

    what: str
    user_id: int
    row: str
    expected: object  # ANY: an instant that the test does not know
    found: object
    statements: tuple[str, ...]


def of_uid(number: int) -> str:
    return f"uid {UUID(int=number)}"


def entry(seq: int, number: int) -> str:
    return f"seq {seq} {of_uid(number)}"


def update(table: str, number: int, change: str) -> str:
    return f"UPDATE {table} SET {change} WHERE uid = '{UUID(int=number)}'"


def delete(table: str, number: int) -> str:
    return f"DELETE FROM {table} WHERE uid = '{UUID(int=number)}'"


def update_user(user_id: int, change: str) -> str:
    return f"UPDATE users SET {change} WHERE id = {user_id}"


LATER = "history_at = history_at + interval '1 s'"
EARLIER = "effective_at = effective_at - interval '30 days'"
TWICE = """INSERT INTO ledger (user_id, seq, uid, amount, balance_after, effective_at, history_at, recorded_at)
    SELECT user_id, 2, uid, amount, 1400, effective_at, history_at, recorded_at FROM ledger WHERE user_id = 4"""

HARMS = [
    # entries
    Harm("seq", ANN, entry(4, 4), "3", "4", (delete("ledger", 3),)),
    Harm("balance_after", ANN, entry(2, 2), "7000", "7001", (update("ledger", 2, "balance_after = 7001"),)),
    Harm(
        "balance_after not negative",
        ANN,
        entry(2, 2),
        "0",
        "-1",
        (without("ledger_balance_after_not_negative"), update("ledger", 2, "balance_after = -1")),
    ),
    Harm("history_at", ANN, entry(4, 4), ANY, ANY, (update("ledger", 4, LATER),)),
    Harm(
        "late",
        ANN,
        entry(3, 3),
        "true",
        "false",
        ("ALTER TABLE ledger ALTER late DROP EXPRESSION", update("ledger", 3, "late = false")),
    ),
    Harm("balance at an instant not negative", ANN, "seq 2", "0", "-3000", (update("ledger", 2, EARLIER),)),
    # users
    Harm("the user", BEN, "user", "2", None, ("DELETE FROM users WHERE id = 2",)),
    Harm("balance: the sum of the ledger", CAT, "user", "0", "1", (update_user(CAT, "balance = 1"),)),
    Harm("balance: the last balance_after", DAN, "user", "9", "700", (update("ledger", 9, "balance_after = 9"),)),
    Harm(
        "balance not negative",
        BEN,
        "user",
        "0",
        "-1",
        (without("users_balance_not_negative"), update_user(BEN, "balance = -1")),
    ),
    Harm("last_seq: the number of entries", ANN, "user", "5", "6", (update_user(ANN, "last_seq = 6"),)),
    Harm("last_seq: the highest seq", BEN, "user", "7", "2", (update("ledger", 8, "seq = 7"),)),
    Harm("last_history_at: of the last entry", CAT, "user", None, ANY, (update_user(CAT, "last_history_at = now()"),)),
    Harm("entries, one for each COMPLETED", DAN, "user", "1", "2", (without("ledger_uid_key"), TWICE)),
    Harm("last_event_seq: the number of final ones", ANN, "user", "6", "5", (update_user(ANN, "last_event_seq = 5"),)),
    Harm("highest user_seq of an event", ANN, "user", "6", "5", (delete("events", 6),)),
    Harm("events from the lowest kept on", ANN, "user", "6", "5", (delete("events", 3),)),
    # transactions
    Harm("entries", DAN, of_uid(9), "1", "0", (delete("ledger", 9),)),
    Harm("entries", DAN, of_uid(9), "0", "1", (update("transactions", 9, "status = 'PENDING', settled_at = NULL"),)),
    Harm("a reason", ANN, of_uid(5), "true", "false", (without("transactions_reason_check"), update("transactions", 5, "reason = NULL"))),
    Harm("a reason", DAN, of_uid(10), "false", "true", (without("transactions_reason_check"), update("transactions", 10, "reason = 'insufficient_funds'"))),
    Harm("a known reason", ANN, of_uid(5), "true", "false", (update("transactions", 5, "reason = 'a whim'"),)),
    Harm("a settled_at", BEN, of_uid(7), "true", "false", (without("transactions_settled_check"), update("transactions", 7, "settled_at = NULL"))),
    Harm("a known status", DAN, of_uid(10), "true", "false", (without("transactions_status_check"), without("transactions_settled_check"), update("transactions", 10, "status = 'LOST'"))),
    Harm("PENDING if parked", BEN, of_uid(7), "true", "false", (without("transactions_parked_check"), update("transactions", 7, "parked_at = now()"))),
    # pairs
    Harm("transaction of the entry", BEN, of_uid(7), "COMPLETED", None, (delete("transactions", 7),)),
    Harm("transaction of the entry", BEN, of_uid(7), "COMPLETED", "REJECTED", (update("transactions", 7, "status = 'REJECTED', reason = 'insufficient_funds'"),)),
    Harm("user of the entry", CAT, of_uid(9), "4", "3", (update("ledger", 9, "user_id = 3"),)),
    Harm("amount of the entry", BEN, of_uid(7), "501", "500", (update("transactions", 7, "amount = 501"),)),
    Harm("amount of the entry", BEN, of_uid(7), "-500", "500", (update("transactions", 7, "type = 'WITHDRAW'"),)),
]  # fmt: skip
CHECKS = (
    *verification.ENTRY_CHECKS,
    *verification.INSTANT_CHECKS,
    *verification.USER_CHECKS,
    *verification.TRANSACTION_CHECKS,
    *verification.PAIR_CHECKS,
)


def test_good_books_are_green_and_counted(books: None) -> None:
    assert verified() == Findings(RowCounts(users=4, entries=8, completed=8, rejected=1, pending=1, parked=0))


def test_every_check_has_a_harm_that_must_turn_it_red() -> None:
    assert {harm.what for harm in HARMS} == {what for what, _, _ in CHECKS}


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: f"{harm.what}: {harm.found}")
def test_each_harm_is_told_by_the_row_that_it_was_done_to(
    harm: Harm, books: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupt(*harm.statements)
    for range_users in (1000, 1):
        monkeypatch.setattr(verification, "RANGE_USERS", range_users)
        findings = verified()
        told = [d for d in findings.first if (d.what, d.user_id) == (harm.what, harm.user_id) and harm.row in d.row]
        assert [(d.expected, d.found) for d in told] == [(harm.expected, harm.found)], findings.first
        assert findings.differences == len(findings.first)


def test_a_user_without_a_row_is_told_wherever_the_ranges_end(books: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "RANGE_USERS", 1)
    monkeypatch.setattr("shared.payments.verify.MAX_SHOWN_DIFFERENCES", 1000)
    corrupt(*(f"UPDATE {table} SET user_id = 10000 + user_id" for table in ("ledger", "transactions", "events")))
    told = {d.user_id for d in verified().first if d.what == "the user"}
    assert told == {10000 + user_id for user_id in (ANN, BEN, DAN)}


def test_a_range_ends_early_after_a_user_with_very_many(books: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "RANGE_TRANSACTIONS", 3)
    assert [findings.counts.users for findings in verify()] == [1, 4]


def test_only_the_first_differences_are_kept_and_all_are_counted(books: None) -> None:
    corrupt("INSERT INTO users (name, balance) SELECT 'Eve', 5 FROM generate_series(1, 3000)")
    findings = verified()
    assert findings.differences == 3000 * 2  # against the sum and against the last entry
    assert len(findings.first) == MAX_SHOWN_DIFFERENCES
    assert findings.counts.users == 3004


def test_events_may_be_pruned_from_the_oldest_on(books: None) -> None:
    corrupt("DELETE FROM events WHERE user_id = 1 AND user_seq <= 4", "DELETE FROM events WHERE user_id = 2")
    assert verified().differences == 0


def test_a_guard_that_is_off_is_told(books: None) -> None:
    for trigger, table in guards.TRIGGERS.items():
        run_sql(f"ALTER TABLE {table} DISABLE TRIGGER {trigger}")
        assert [(d.row, d.found) for d in verified().first] == [(f"trigger {trigger} on {table}", "no")]
        run_sql(f"ALTER TABLE {table} ENABLE TRIGGER {trigger}")
    assert verified().differences == 0
    run_sql("DROP TRIGGER transactions_final ON transactions")
    assert [d.row for d in verified().first] == ["trigger transactions_final on transactions"]


def test_the_guards_are_all_that_the_migrations_make(books: None) -> None:
    triggers = "SELECT tgname, relname FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid WHERE NOT tgisinternal"
    constraints = """
        SELECT relname, conname FROM pg_constraint JOIN pg_class c ON c.oid = conrelid
        WHERE contype <> 'n' AND relnamespace = 'public'::regnamespace AND relname <> 'alembic_version'
    """
    with plain_engine().connect() as connection:
        assert {*connection.exec_driver_sql(triggers).all()} == {*guards.TRIGGERS.items()}
        made = {*connection.exec_driver_sql(constraints).all()}
    assert made == {(table, name) for table, names in guards.CONSTRAINTS.items() for name in names}


@pytest.mark.parametrize("constraint", ["ledger_uid_key", "ledger_pkey", "users_balance_not_negative"])
def test_a_constraint_that_is_gone_is_told(constraint: str, books: None) -> None:
    run_sql(without(constraint))
    assert [d.row for d in verified().first] == [f"constraint {constraint} on {constraint.partition('_')[0]}"]


@pytest.mark.parametrize("name", ["fsync", "full_page_writes"])
def test_a_server_that_could_lose_a_commit_is_told(name: str) -> None:
    state = ServerState("0001", "on", "on")
    assert unsafe_settings(state) == {}
    assert unsafe_settings(state._replace(**{name: "off"})) == {name: "off"}


def test_a_database_without_books_is_refused(server_url: str) -> None:
    with empty_database(server_url) as url, using(url), pytest.raises(NotReady):
        verified()


def test_a_range_is_one_read_only_snapshot(books: None) -> None:
    asked = "SELECT name, setting FROM pg_settings WHERE name ~ '^transaction_(isolation|read_only|timeout)$'"
    with database.transaction() as connection:
        verification.begin_snapshot(connection)
        found = dict(map(tuple, connection.exec_driver_sql(asked)))
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar_one() == "15min"
    assert found.pop("transaction_timeout", "0") == "0"  # Postgres 17 and newer
    assert found == {"transaction_isolation": "repeatable read", "transaction_read_only": "on"}


@contextmanager
def settling_meanwhile() -> Iterator[None]:
    """Late and ordinary payments of the four users are accepted and settled without a pause while the block runs."""
    stop = threading.Event()

    def settle() -> None:
        while not stop.is_set():
            for user_id in (ANN, BEN, CAT, DAN):
                accepted(*(deposit(user_id, 2, ago(days=n)) for n in range(3)), withdrawal(user_id, 1, ago(days=1)))
                settle_lanes([lane_of(user_id)])

    worker = threading.Thread(target=settle)
    worker.start()
    try:
        yield
    finally:
        stop.set()
        worker.join()


def test_it_is_exact_while_payments_are_being_settled(books: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "RANGE_USERS", 2)
    with settling_meanwhile():
        seen = [verified() for _ in range(60)]
    assert {findings.differences for findings in seen} == {0}, seen[-1]
    assert seen[-1].counts.entries - seen[0].counts.entries > 100
