"""The way to Postgres: one engine per process, one `transaction()` per use case, errors told apart.

What the promises need of a session (synchronous commit, READ COMMITTED, time-outs) is set by us on every
connection, whatever the server's defaults are.
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
STATEMENT_TIMEOUT_SECONDS: Final = 5.0  # as in SESSION
DATABASE_CONNECT_TIMEOUT_SECONDS: Final = 3.0
RESPONSE_GRACE_SECONDS: Final = 3.0  # what an answer may take beyond the statement's own time-out

# SQLSTATE classes that say nothing of the statement: connection, state of the transaction, rollback by the
# server, resources, the operator, the system. (And 55, a lock not to be had in time.)
_INFRASTRUCTURE_CODES: Final = ("08", "25", "40", "53", "55", "57", "58", "XX")
# Of class 53 a statement's own are memory and temporary files; a full disk and too many connections are everybody's.
_SINGLE_USER_CODES: Final = ("53200", "53400", "55", "57014", "58", "XX")
_EVENTS: Final = {psycopg2.extensions.POLL_READ: select.POLLIN, psycopg2.extensions.POLL_WRITE: select.POLLOUT}
PING_AFTER_IDLE_SECONDS: Final = 1.0
CONNECTION_ERRORS: Final = (
    OperationalError,
    InterfaceError,
    PoolTimeout,
    PendingRollbackError,
    psycopg2.OperationalError,  # where SQLAlchemy does not wrap what the driver raises
    psycopg2.InterfaceError,
)


class _Connection(psycopg2.extensions.connection):  # type: ignore[misc]
    """Knows how long its present statement may take."""

    statement_seconds = STATEMENT_TIMEOUT_SECONDS


def _await_answer(connection: Any) -> None:
    """Wait for the server as libpq does, but not for ever.

    A line can be dead while its packets are still acknowledged (a hung proxy, a frozen server): no time-out of the
    server and none of TCP ends that wait. Source: psycopg2's `extras.wait_select`, with a deadline.
    """
    deadline = None  # of another library's connection
    if isinstance(connection, _Connection):
        connecting = connection.status == psycopg2.extensions.STATUS_SETUP
        timeout = (
            DATABASE_CONNECT_TIMEOUT_SECONDS if connecting else connection.statement_seconds + RESPONSE_GRACE_SECONDS
        )
        deadline = time.monotonic() + timeout
    while (state := connection.poll()) != psycopg2.extensions.POLL_OK:
        poller = select.poll()  # not select(): web has more descriptors than that can take
        poller.register(connection.fileno(), _EVENTS[state])
        remaining_ms = deadline and max(0.0, deadline - time.monotonic()) * 1000
        if not poller.poll(remaining_ms):
            raise psycopg2.OperationalError("the server did not answer in time")


@cache
def engine() -> Engine:
    """The process's engine. Connects when first used, so nothing is shared across a fork before that."""
    psycopg2.extensions.set_wait_callback(_await_answer)
    new_engine = create_engine(
        settings().database_url,
        pool_size=settings().web_connections,
        max_overflow=0,
        pool_timeout=3,
        pool_use_lifo=True,  # the server's process that was used last has what it needs at hand
        hide_parameters=True,  # errors are logged and stored; amounts and balances are not for there
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


_last_server: tuple[str, str] | None = None  # the one of several that a connection was made to last


def _connect_to_first(dialect: Dialect, _record: Any, arguments: Any, parameters: dict[str, Any]) -> Any:
    """Returns a connection to the first of several servers that takes one, the last one in use before the others.

    libpq tries them in turn, too, but waits for a silent one (its machine is gone) without end: connections with a wait
    callback have no time-out of its own. None where there is one server: SQLAlchemy goes on.
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
    """Of this process to the database: how many are in use, and how many it may have."""

    in_use: int
    limit: int


def count_connections() -> Connections:
    pool = engine().pool
    assert isinstance(pool, QueuePool)
    return Connections(pool.checkedout(), pool.size())


def _check_session(connection: Any, _record: Any) -> None:
    """Refuse a session that is not as we asked: a pooler may drop `options` without a word. Raises Unavailable."""
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
    """A connection to a server that has become read-only is as good as lost: the next one finds its successor."""
    if getattr(context.original_exception, "pgcode", None) == "25006":
        context.is_disconnect = True


def set_statement_timeout(connection: Connection, seconds: int) -> None:
    """Give each further statement of the transaction this time instead."""
    connection.execute(text(f"SET LOCAL statement_timeout = '{seconds}s'"))
    connection.connection.dbapi_connection.statement_seconds = seconds  # type: ignore[union-attr]


def _ping_after_idle(connection: Any, record: Any, _proxy: Any) -> None:
    """Replace a connection that was lost while nobody used it; at full load the question would cost too much."""
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
    """One transaction, committed at the end of the block, rolled back by any exception in it."""
    with engine().begin() as connection:
        yield connection


def disable_sync_commit(connection: Connection) -> None:
    """Let this transaction's commit not wait for the disk: for what may be forgotten by a crash, with all after it."""
    connection.execute(text("SET LOCAL synchronous_commit = off"))


@contextmanager
def autocommit() -> Iterator[Connection]:
    """Each statement is a transaction of its own: one round trip, not three.

    Not by SQLAlchemy's isolation level: changing that asks the server twice, and when the line is lost meanwhile the
    driver's own error comes out and the connection is never given back.
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
    """Whether an error says nothing of the row that met it, so that trying again is right.

    psycopg2 gives no SQLSTATE for any lost connection; what has one is judged by its class.
    """
    if isinstance(error, DBAPIError):
        code = getattr(error.orig, "pgcode", None)
        if code:
            return str(code).startswith(_INFRASTRUCTURE_CODES)
        return error.connection_invalidated or isinstance(error, CONNECTION_ERRORS)
    return isinstance(error, (*CONNECTION_ERRORS, Unavailable))


def may_be_single_user(error: BaseException) -> bool:
    """Whether machinery may have failed for one user's rows alone: a lock, a time-out, a damaged page."""
    code = getattr(getattr(error, "orig", None), "pgcode", None)
    return bool(code) and str(code).startswith(_SINGLE_USER_CODES)


def first_line(error: BaseException) -> str:
    """What a log line says of an error that needs no traceback."""
    return (str(error).splitlines() or [repr(error)])[0]


def is_resource_limit(error: DBAPIError) -> bool:
    """Whether a statement took more than it may: time, memory, temporary files."""
    return getattr(error.orig, "pgcode", None) in ("57014", "53200", "53400")


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
