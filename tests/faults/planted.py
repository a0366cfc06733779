"""Bugs on purpose: web and worker load this module as they start, and FAULTS_BUG names the one to plant.

Each bug comes with the defences behind it switched off, here and (DEFENCES) in the database: the suite must see what
would happen, not how the second line refuses it.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

from sqlalchemy import Connection, text

from shared import database
from shared.database import array
from shared.payments import accept, doorbell, settle
from shared.payments.queries import lanes, ledger, transactions, users

LATE_COMMIT_SECONDS: Final = 0.3
WIDER_SECONDS: Final = 0.02  # what a race's window is widened by

# What the owner of the database runs first, so that nothing refuses what the bug does.
DEFENCES: Final = (
    "ALTER TABLE transactions DISABLE TRIGGER transactions_final",
    "ALTER TABLE ledger DROP CONSTRAINT ledger_uid_key",
    "ALTER TABLE ledger DROP CONSTRAINT ledger_pkey",
    "ALTER TABLE events DROP CONSTRAINT events_user_id_user_seq_key",
    "ALTER TABLE users DROP CONSTRAINT users_balance_not_negative",
    "ALTER TABLE ledger DROP CONSTRAINT ledger_balance_after_not_negative",
)
NO_UNIQUE: Final = (
    "ALTER TABLE transactions DROP CONSTRAINT transactions_pkey",
    "CREATE INDEX transactions_uid ON transactions (uid)",
)


def replace(module: ModuleType, name: str, new: Any) -> None:
    """Put another function into a module of the service. It must have one of that name."""
    assert hasattr(module, name), f"the bug cannot be planted: {module.__name__} has no {name}"
    setattr(module, name, new)


def changed(statement: Any, old: str, new: str) -> Any:
    """The statement with a part of it replaced, which must be there."""
    assert old in str(statement), f"the bug cannot be planted: {old}"
    return text(str(statement).replace(old, new))


def answer_before_commit() -> None:
    """2xx before commit."""

    @contextmanager
    def hasty() -> Iterator[Connection]:
        connection = database.engine().connect()
        yield connection

        def commit() -> None:
            time.sleep(LATE_COMMIT_SECONDS)
            connection.commit()
            connection.close()

        threading.Thread(target=commit, daemon=True).start()

    replace(accept, "autocommit", hasty)


def no_unique_uid() -> None:
    """Neither a unique index (NO_UNIQUE) nor what leans on it."""
    not_known = "NOT EXISTS (SELECT FROM transactions known WHERE known.uid = asked.uid)"
    statement = changed(transactions._ACCEPT, not_known, "true")
    transactions._ACCEPT = changed(statement, "ON CONFLICT (uid) DO NOTHING", "")
    _no_status_guard()


def no_lane_lock() -> None:
    """Every process settles any lane at any time. The users' rows are still locked."""
    replace(lanes, "try_lock_lanes", lambda _connection, lanes: list(lanes))
    _no_count()
    _widen_after_reading()


def no_row_lock() -> None:
    """Balances are read, changed and written without a lock, the lane's neither."""
    no_status_guard()
    users._LOCK = changed(users._LOCK, "FOR NO KEY UPDATE", "")


def no_status_guard() -> None:
    """A row is made final whatever it is, where two workers meet."""
    no_lane_lock()
    _no_status_guard()


def lock_and_read_in_one_statement() -> None:
    """The lock is waited for in the statement that reads: it sees what was PENDING before the wait."""
    replace(lanes, "try_lock_lanes", lambda _connection, lanes: list(lanes))
    locked = "FROM (SELECT pg_advisory_xact_lock(7411, lane.lane)) AS lock CROSS JOIN transactions t WHERE"
    lanes._READ_LANES = changed(lanes._READ_LANES, "FROM transactions t WHERE", locked)
    _no_status_guard()


def start_of_transaction_for_the_clock() -> None:
    """now() where the clock is meant."""
    users._LOCK = changed(users._LOCK, "clock_timestamp()", "now()")


def park_when_the_line_is_lost() -> None:
    """A fault of the machinery is taken for one of the rows."""
    _when_the_line_is_lost("parked_at = clock_timestamp(), attempts = 1")


def reject_when_the_line_is_lost() -> None:
    """As above, and for good."""
    _when_the_line_is_lost("status = 'REJECTED', reason = 'insufficient_funds', settled_at = clock_timestamp()")


def _when_the_line_is_lost(change: str) -> None:
    plain = settle.settle_lanes
    blame = text(f"UPDATE transactions SET {change} WHERE lane = ANY(:lanes) AND status = 'PENDING'")

    def hasty(of: list[int]) -> settle.SliceResult:
        try:
            done: settle.SliceResult = plain(of)
            return done
        except Exception:
            with database.transaction() as connection:
                connection.execute(blame, {"lanes": of})
            raise

    replace(settle, "settle_lanes", hasty)


def two_transactions() -> None:
    """Entries and balances are committed before the statuses."""
    plain, condition = ledger.write, "t.status || '' = 'PENDING'"
    ledger._WRITE = changed(ledger._WRITE, condition, "false")
    make_final = text("""
        UPDATE transactions t SET status = outcome.status, reason = outcome.reason, settled_at = :moment
        FROM unnest(CAST(:uids AS uuid[]), CAST(:statuses AS text[]), CAST(:reasons AS text[]))
            AS outcome (uid, status, reason)
        WHERE t.uid = outcome.uid AND t.status || '' = 'PENDING'
    """)

    def hasty(connection: Connection, outcomes: Any, accounts: Any, moment: Any) -> ledger.WrittenCounts:
        written = plain(connection, outcomes, accounts, moment)
        connection.connection.dbapi_connection.commit()  # type: ignore[union-attr]
        values = {
            "uids": array(o.pending.uid for o in outcomes),
            "statuses": array(o.status for o in outcomes),
            "reasons": array(o.reason for o in outcomes),
            "moment": moment,
        }
        return written._replace(transactions=connection.execute(make_final, values).rowcount)

    replace(ledger, "write", hasty)


def key_deleted_after_the_read() -> None:
    """Who commits and rings between the read and the deletion is forgotten. The sweep, which would find it, is off."""
    no_sweep()
    clear_flags, read = doorbell.clear_flags, lanes.read_pending

    def read_then_hush(connection: Connection, of: list[int], *arguments: Any) -> Any:
        rows = read(connection, of, *arguments)
        time.sleep(5 * WIDER_SECONDS)
        clear_flags(of)
        return rows

    replace(doorbell, "clear_flags", lambda _lanes: None)
    replace(lanes, "read_pending", read_then_hush)


def no_sweep() -> None:
    """No bug, only a defence switched off."""
    from worker import sweep

    replace(sweep, "start", lambda: None)


def nothing() -> None:
    """No bug: what is found with this is found wrongly."""


def _no_status_guard() -> None:
    _no_count()
    ledger._WRITE = changed(ledger._WRITE, "AND t.status || '' = 'PENDING'", "")


def _no_count() -> None:
    """The number of rows written is believed to be right."""
    write = ledger.write

    def uncounted(connection: Connection, outcomes: Any, accounts: Any, moment: Any) -> ledger.WrittenCounts:
        write(connection, outcomes, accounts, moment)
        return ledger.WrittenCounts(len(outcomes), len(accounts))

    replace(ledger, "write", uncounted)


def _widen_after_reading() -> None:
    read = lanes.read_pending

    def slowly(*arguments: Any) -> Any:
        rows = read(*arguments)
        time.sleep(WIDER_SECONDS)
        return rows

    replace(lanes, "read_pending", slowly)


BUGS: Final[dict[str, Callable[[], None]]] = {
    "2xx before commit": answer_before_commit,
    "no UNIQUE on uid": no_unique_uid,
    "read-modify-write without the lock": no_row_lock,
    "no lane lock": no_lane_lock,
    "lock and read in one statement": lock_and_read_in_one_statement,
    "no status guard": no_status_guard,
    "now() for the clock": start_of_transaction_for_the_clock,
    "a lost connection parks": park_when_the_line_is_lost,
    "a lost connection rejects": reject_when_the_line_is_lost,
    "settling in two transactions": two_transactions,
    "key deleted after the read": key_deleted_after_the_read,
    "no sweep": no_sweep,
    "nothing": nothing,
}

if name := os.environ.get("FAULTS_BUG"):
    BUGS[name]()
