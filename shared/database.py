"""The way to Postgres: one engine per process, one `transaction()` per use case, errors told apart.

What the promises need of a session (synchronous commit, READ COMMITTED, time-outs) is set by us on every
connection, whatever the server's defaults are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from shared.settings import settings

SESSION: Final = {
    "synchronous_commit": "on",
    "default_transaction_isolation": r"read\ committed",
    "lock_timeout": "2s",
    "statement_timeout": "5s",
    "idle_in_transaction_session_timeout": "5s",
    "timezone": "UTC",
}
TRANSACTION_TIMEOUT: Final = "30s"  # Postgres 17 and newer
LATE_SCAN_TIMEOUT: Final = "14s"  # it may come twice in a transaction: the rules, then the trigger

# SQLSTATE classes that say nothing of the statement: connection, state of the transaction, rollback by the
# server, resources, the operator, the system. (And 55, a lock not to be had in time.)
_MACHINERY: Final = ("08", "25", "40", "53", "55", "57", "58", "XX")
UNREACHABLE: Final = (OperationalError, InterfaceError, PoolTimeout, PendingRollbackError)


@cache
def engine() -> Engine:
    """The process's engine. Connects when first used, so nothing is shared across a fork before that."""
    made = create_engine(
        settings().database_url,
        pool_size=settings().web_connections,
        max_overflow=0,
        pool_timeout=3,
        pool_pre_ping=True,
        hide_parameters=True,  # errors are logged and stored; amounts and balances are not for there
        connect_args={
            "connect_timeout": 3,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 2,
            "tcp_user_timeout": 10_000,
            "application_name": f"payments-{settings().process}",
            "options": " ".join(f"-c {name}={value}" for name, value in SESSION.items()),
        },
    )
    event.listen(made, "connect", _limit_transactions)
    return made


def _limit_transactions(connection: Any, _record: Any) -> None:
    if connection.server_version >= 170000:
        with connection.cursor() as cursor:
            cursor.execute(f"SET transaction_timeout = '{TRANSACTION_TIMEOUT}'")
        connection.commit()


@contextmanager
def transaction() -> Iterator[Connection]:
    """One transaction, committed at the end of the block, rolled back by any exception in it."""
    with engine().begin() as connection:
        yield connection


def is_machinery(error: BaseException) -> bool:
    """Whether an error says nothing of the row that met it, so that trying again is right.

    psycopg2 gives no SQLSTATE for any lost connection; what has one is judged by its class.
    """
    if isinstance(error, DBAPIError):
        code = getattr(error.orig, "pgcode", None)
        if code:
            return str(code).startswith(_MACHINERY)
        return error.connection_invalidated or isinstance(error, UNREACHABLE)
    return isinstance(error, UNREACHABLE)


def is_timeout(error: DBAPIError) -> bool:
    """Whether a statement was cancelled: its time-out, or an operator."""
    return getattr(error.orig, "pgcode", None) == "57014"


def is_lock_timeout(error: DBAPIError) -> bool:
    """Whether a lock was not to be had in time."""
    return getattr(error.orig, "pgcode", None) == "55P03"


def array(values: Any) -> str:
    """A Postgres array literal of numbers, uuids, instants or nulls, for CAST(:values AS type[]).

    One text is several times cheaper to bind than a list. Free text must be quoted: see `text_array`.
    """
    return "{" + ",".join("NULL" if value is None else f'"{value}"' for value in values) + "}"


def text_array(values: Any) -> str:
    """As `array`, for free text."""
    quoted = (None if v is None else v.replace("\\", "\\\\").replace('"', '\\"') for v in values)
    return array(quoted)
