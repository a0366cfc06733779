"""Failpoints at every boundary of accepting and settling: before and after each statement, commit, and word to the broker.

`install` hooks SQLAlchemy's events, the driver's commit, redis and Celery from outside. Production never loads this:
its code has no call for it and pays nothing.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import psycopg2  # type: ignore[import-untyped]
import redis
from sqlalchemy import event

from shared import database
from shared.payments import doorbell

ACTIONS: Final = ("kill", "raise", "lose", "stall")
STALL_SECONDS: Final = 0.6
IDLE_LIMIT: Final = "250ms"  # of a stalled process's transaction, in place of 5 s

# The statements of accepting and settling by what they hold. What is not here has its own text as its name.
STEPS: Final = {
    "INSERT INTO transactions": "insert",
    "FROM transactions t LEFT JOIN ledger": "find",
    "pg_try_advisory_xact_lock": "lock the lane",
    "behind_parked": "read pending",
    "FOR NO KEY UPDATE": "lock users",
    "SET LOCAL statement_timeout": "allow the scan",
    "width_bucket": "scan the past",
    "INSERT INTO ledger": "write the batch",
}


class OurBug(Exception):
    """What "raise" raises: an error of our own code, which says nothing of servers."""


class Failpoint:
    """Acts once, at the first passing of a point such as "before write entries". Without a point it only listens."""

    def __init__(self, point: str = "", action: str = "", tell: Callable[[], None] = lambda: None) -> None:
        """`tell` is called as it fires, before it acts."""
        self.passed: list[str] = []
        self.fired = threading.Event()
        self._point = point
        self._action = action
        self._tell = tell

    def install(self) -> None:
        engine = database.engine()
        event.listen(engine, "before_cursor_execute", self._before_statement)
        event.listen(engine, "after_cursor_execute", self._after_statement)
        dialect: Any = engine.dialect
        commit = dialect.do_commit
        dialect.do_commit = lambda fairy: self._around("commit", lambda: commit(fairy), fairy.dbapi_connection)
        bell: Any = doorbell._redis()
        bell.execute_command = self._wrapped(bell.execute_command, str)
        make_pipeline = bell.pipeline
        bell.pipeline = lambda *arguments, **options: self._pipeline(make_pipeline(*arguments, **options))
        sender: Any = doorbell._sender()
        sender.send_task = self._wrapped(sender.send_task, lambda _: "send the task")

    def _before_statement(self, connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self._pass("before", name_of(statement), connection.connection.dbapi_connection)

    def _after_statement(self, connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self._pass("after", name_of(statement), connection.connection.dbapi_connection)

    def _pipeline(self, pipeline: Any) -> Any:
        pipeline.execute = self._wrapped(pipeline.execute, lambda *_: "pipeline")
        return pipeline

    def _wrapped(self, plain: Callable[..., Any], name: Callable[[Any], str]) -> Callable[..., Any]:
        def around(*arguments: Any, **options: Any) -> Any:
            return self._around(name(*arguments[:1]), lambda: plain(*arguments, **options), None)

        return around

    def _around(self, step: str, act: Callable[[], Any], connection: Any) -> Any:
        self._pass("before", step, connection)
        result = act()
        self._pass("after", step, connection)
        return result

    def _pass(self, side: str, step: str, connection: Any) -> None:
        point = f"{side} {step}"
        self.passed.append(point)
        if point == self._point and not self.fired.is_set():
            self.fired.set()
            self._tell()
            self._act(connection)

    def _act(self, connection: Any) -> None:
        if self._action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._action == "raise":
            raise OurBug(self._point)
        elif self._action == "stall":
            time.sleep(STALL_SECONDS)
        elif connection is None:
            raise redis.ConnectionError(self._point)
        else:
            _terminate(connection)


def name_of(statement: str) -> str:
    """The step's name, or the statement's beginning where it has none."""
    return next((name for mark, name in STEPS.items() if mark in statement), " ".join(statement.split())[:60])


def _terminate(connection: Any) -> None:
    """End the session of the connection, as an operator or a crash would. Its owner learns when it uses it."""
    pid = connection.info.backend_pid
    url = str(database.engine().url.set(drivername="postgresql").render_as_string(hide_password=False))
    other = psycopg2.connect(url)
    try:
        other.autocommit = True
        other.cursor().execute("SELECT pg_terminate_backend(%s, 2000)", [pid])
    finally:
        other.close()
