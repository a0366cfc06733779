"""Access to Postgres: one engine per process, one `transaction()` per use case, and classes of errors.

Each connection sets the session settings that our guarantees need (synchronous commit, READ COMMITTED, time-outs), so
that the defaults of the server do not matter.
"""

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final, NamedTuple

import psycopg2.extensions  # type: ignore[import-untyped]
from sqlalchemy import Connection, Dialect, Engine, ExceptionContext, create_engine, event, text
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from shared.errors import Unavailable
from shared.settings import settings

SESSION_SETTINGS: Final = {
    "synchronous_commit": "on",
    "default_transaction_isolation": r"read\ committed",
    "lock_timeout": "2s",
    "statement_timeout": "5s",
    "idle_in_transaction_session_timeout": "5s",
    "timezone": "UTC",
}
TRANSACTION_TIMEOUT: Final = "30s"  # Postgres 17 and newer
STATEMENT_TIMEOUT_SECONDS: Final = 5.0  # as in SESSION_SETTINGS
DATABASE_CONNECT_TIMEOUT_SECONDS: Final = 3.0
RESPONSE_GRACE_SECONDS: Final = 3.0  # for the response, after the time-out of the statement

# SQLSTATE classes of errors that do not depend on the statement: connection, state of the transaction, rollback by the
# server, resources, lock time-out (55), operator and system.
_INFRASTRUCTURE_CODES: Final = ("08", "25", "40", "53", "55", "57", "58", "XX")
# Of class 53, memory and temporary files can be the fault of one statement. A full disk is not.
_SINGLE_USER_CODES: Final = ("53200", "53400", "55", "57014", "58", "XX")
_EVENTS: Final = {psycopg2.extensions.POLL_READ: select.POLLIN, psycopg2.extensions.POLL_WRITE: select.POLLOUT}
PING_AFTER_IDLE_SECONDS: Final = 1.0
CONNECTION_ERRORS: Final = (
    OperationalError,
    InterfaceError,
    PoolTimeout,
    PendingRollbackError,
    psycopg2.OperationalError,  # SQLAlchemy does not wrap all errors of the driver
    psycopg2.InterfaceError,
)


class _Connection(psycopg2.extensions.connection):  # type: ignore[misc]
    """A connection with the time-out of its current statement, in seconds."""

    statement_seconds = STATEMENT_TIMEOUT_SECONDS


def _await_answer(connection: Any) -> None:
    """Waits for a response of the server, with a deadline. Raises psycopg2.OperationalError after it.

    A peer can hang while its packets are still acknowledged (a hung proxy, a frozen server). No time-out of the server
    and none of TCP ends such a wait. Derived from `extras.wait_select` of psycopg2.
    """
    deadline = None  # for connections of other libraries
    if isinstance(connection, _Connection):
        connecting = connection.status == psycopg2.extensions.STATUS_SETUP
        timeout = (
            DATABASE_CONNECT_TIMEOUT_SECONDS if connecting else connection.statement_seconds + RESPONSE_GRACE_SECONDS
        )
        deadline = time.monotonic() + timeout
    while (state := connection.poll()) != psycopg2.extensions.POLL_OK:
        poller = select.poll()  # not select(), which cannot take as many descriptors as web has
        poller.register(connection.fileno(), _EVENTS[state])
        remaining_ms = deadline and max(0.0, deadline - time.monotonic()) * 1000
        if not poller.poll(remaining_ms):
            raise psycopg2.OperationalError("the server did not answer in time")


@cache
def engine() -> Engine:
    """Returns the engine of this process. It connects at first use, so that a fork before that shares no connection."""
    psycopg2.extensions.set_wait_callback(_await_answer)
    new_engine = create_engine(
        settings().database_url,
        pool_size=settings().web_connections,
        max_overflow=0,
        pool_timeout=3,
        pool_use_lifo=True,  # the server process used last has warm caches
        hide_parameters=True,  # errors are logged and stored, and must not show amounts
        connect_args={
            "connection_factory": _Connection,
            "connect_timeout": int(DATABASE_CONNECT_TIMEOUT_SECONDS),
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 2,
            "tcp_user_timeout": 10_000,
            "application_name": f"payments-{settings().process}",
            "options": " ".join(f"-c {name}={value}" for name, value in SESSION_SETTINGS.items()),
        },
    )
    event.listen(new_engine, "do_connect", _connect_to_first)
    event.listen(new_engine, "connect", _check_session)
    event.listen(new_engine, "handle_error", _invalidate_standby)
    event.listen(new_engine, "checkout", _ping_after_idle)
    event.listen(new_engine, "checkin", _note_checkin)
    return new_engine


_last_server: tuple[str, str] | None = None  # the server of the last new connection, if there are several


def _connect_to_first(dialect: Dialect, _record: Any, arguments: Any, parameters: dict[str, Any]) -> Any:
    """Returns a connection to the first of several servers that accepts one. The server used last is tried first.

    libpq also tries them in turn, but waits for a silent server without end, because a wait callback disables its
    time-out. Returns None if there is only one server: SQLAlchemy then connects.
    """
    global _last_server
    servers = list(zip(*(str(parameters.get(name, "")).split(",") for name in ("host", "port")), strict=False))
    if len(servers) < 2:
        return None
    failures = []
    for server in sorted(servers, key=lambda server: server != _last_server):
        try:
            connection = dialect.connect(*arguments, **{**parameters, "host": server[0], "port": server[1]})
        except psycopg2.OperationalError as error:
            failures.append(f"{server[0]}:{server[1]}: {error}".strip())
        else:
            _last_server = server
            return connection
    raise psycopg2.OperationalError("; ".join(failures))


class Connections(NamedTuple):
    """The numbers of database connections of this process: in use, and allowed."""

    in_use: int
    limit: int


def count_connections() -> Connections:
    """Returns how many connections this process uses and may use."""
    pool = engine().pool
    assert isinstance(pool, QueuePool)
    return Connections(pool.checkedout(), pool.size())


def _check_session(connection: Any, _record: Any) -> None:
    """Raises Unavailable if the session lacks our settings: a pooler may drop `options` silently."""
    with connection.cursor() as cursor:
        if connection.server_version >= 170000:
            cursor.execute(f"SET transaction_timeout = '{TRANSACTION_TIMEOUT}'")
        cursor.execute("SELECT " + ", ".join(f"current_setting('{name}')" for name in SESSION_SETTINGS))
        actual = dict(zip(SESSION_SETTINGS, cursor.fetchone(), strict=True))
    connection.commit()
    wrong = [
        f"{name} is {actual[name]}"
        for name, expected in SESSION_SETTINGS.items()
        if actual[name] != expected.replace("\\", "")
    ]
    if wrong:
        raise Unavailable("database_unavailable", f"A database session is not as it was asked for: {', '.join(wrong)}.")


def _invalidate_standby(context: ExceptionContext) -> None:
    """Treats a read-only server as a lost connection, so that the next connection finds the new primary."""
    if getattr(context.original_exception, "pgcode", None) == "25006":
        context.is_disconnect = True


def set_statement_timeout(connection: Connection, seconds: int) -> None:
    """Sets the time-out of all further statements of the transaction."""
    connection.execute(text(f"SET LOCAL statement_timeout = '{seconds}s'"))
    connection.connection.dbapi_connection.statement_seconds = seconds  # type: ignore[union-attr]


def _ping_after_idle(connection: Any, record: Any, _proxy: Any) -> None:
    """Replaces a connection that was lost while idle. A ping at each checkout would cost too much at full load."""
    if time.monotonic() - record.info.get("used_at", 0.0) > PING_AFTER_IDLE_SECONDS:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
            connection.rollback()
        except psycopg2.Error as error:
            raise DisconnectionError from error


def _note_checkin(connection: Any, record: Any) -> None:
    record.info["used_at"] = time.monotonic()
    if connection is not None:
        connection.statement_seconds = STATEMENT_TIMEOUT_SECONDS


@contextmanager
def transaction() -> Iterator[Connection]:
    """Yields a connection in a transaction: committed at the end of the block, rolled back by an exception."""
    with engine().begin() as connection:
        yield connection


def disable_sync_commit(connection: Connection) -> None:
    """Makes the commit of this transaction not wait for the disk, for work that may be lost in a crash."""
    connection.execute(text("SET LOCAL synchronous_commit = off"))


@contextmanager
def autocommit() -> Iterator[Connection]:
    """Yields a connection on which each statement is its own transaction: one round trip instead of three.

    The isolation level of SQLAlchemy is not used. Changing it needs two round trips. If the connection is lost
    meanwhile, SQLAlchemy raises the error of the driver and never returns the connection to the pool.
    """
    with engine().connect() as connection:
        driver: Any = connection.connection.dbapi_connection
        driver.autocommit = True
        try:
            yield connection
        finally:
            if not driver.closed:
                driver.autocommit = False


def is_infrastructure_error(error: BaseException) -> bool:
    """Returns whether an error is caused by infrastructure and not by a row, so that a retry can succeed.

    Errors with an SQLSTATE are judged by its class. psycopg2 gives none for a lost connection.
    """
    if isinstance(error, DBAPIError):
        code = getattr(error.orig, "pgcode", None)
        if code:
            return str(code).startswith(_INFRASTRUCTURE_CODES)
        return error.connection_invalidated or isinstance(error, CONNECTION_ERRORS)
    return isinstance(error, (*CONNECTION_ERRORS, Unavailable))


def may_be_single_user(error: BaseException) -> bool:
    """Returns whether an infrastructure error may concern one user only: a lock, a time-out, a damaged page."""
    code = getattr(getattr(error, "orig", None), "pgcode", None)
    return bool(code) and str(code).startswith(_SINGLE_USER_CODES)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error, for a log line without a traceback."""
    return (str(error).splitlines() or [repr(error)])[0]


def is_resource_limit(error: DBAPIError) -> bool:
    """Returns whether a statement exceeded a limit: time, memory or temporary files."""
    return getattr(error.orig, "pgcode", None) in ("57014", "53200", "53400")


def is_lock_timeout(error: DBAPIError) -> bool:
    """Returns whether a statement got a lock time-out."""
    return getattr(error.orig, "pgcode", None) == "55P03"


def array(values: Any) -> str:
    """Returns a Postgres array literal of numbers, UUIDs, instants or nulls, for CAST(:values AS type[]).

    Binding one text is several times cheaper than binding a list. Free text needs `text_array`, which quotes.
    """
    return "{" + ",".join("NULL" if value is None else f'"{value}"' for value in values) + "}"


def text_array(values: Any) -> str:
    """Returns a Postgres array literal of free text, quoted."""
    quoted = (None if v is None else v.replace("\\", "\\\\").replace('"', '\\"') for v in values)
    return array(quoted)
