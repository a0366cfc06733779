"""What integration tests start from: requests in few words, settling a user, Postgres's clock."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import NullPool

from shared.database import engine, transaction
from shared.payments.accept import Accepted, accept
from shared.payments.model import Transaction, TransactionRequest, Type, lane_of
from shared.payments.queries import transactions
from shared.payments.settle import settle_lanes
from shared.server import read_clock
from shared.settings import settings
from shared.webhooks.deliver import prune_deleted, prune_delivered, prune_events, prune_secrets
from tests.kit.waiting import wait_until


def deposit(user_id: int, amount: int, at: datetime | None = None, uid: UUID | None = None) -> TransactionRequest:
    return TransactionRequest(uid or uuid4(), user_id, Type.DEPOSIT, amount, at)


def withdrawal(user_id: int, amount: int, at: datetime | None = None, uid: UUID | None = None) -> TransactionRequest:
    return TransactionRequest(uid or uuid4(), user_id, Type.WITHDRAW, amount, at)


def clock() -> datetime:
    """Postgres's clock now."""
    with transaction() as connection:
        return read_clock(connection)


def ago(**duration: float) -> datetime:
    """An instant before Postgres's now: ago(days=3)."""
    return clock() - timedelta(**duration)


def accepted(*requests: TransactionRequest) -> list[Accepted]:
    """Accept requests of which none may be refused."""
    replies = accept(requests)
    taken = [reply for reply in replies if isinstance(reply, Accepted)]
    assert len(taken) == len(requests), replies
    return taken


def settled(*requests: TransactionRequest) -> list[str]:
    """Accept requests and settle their users' lanes; what became of them, in order."""
    accepted(*requests)
    for lane in {lane_of(request.user_id) for request in requests}:
        settle_lanes([lane])
    return states(*requests)


def stored(*requests: TransactionRequest) -> list[Transaction]:
    with transaction() as connection:
        found = transactions.find_transactions(connection, [request.uid for request in requests])
    return [found[request.uid] for request in requests]


def states(*requests: TransactionRequest) -> list[str]:
    return [transaction.status.value for transaction in stored(*requests)]


def new_users(count: int, lane: int | None = None) -> list[int]:
    """The ids of new users, in a lane of choice."""
    made: list[int] = []
    with transaction() as connection:
        while len(made) < count:
            ids = connection.scalars(
                text("INSERT INTO users (name) SELECT 'Ann' FROM generate_series(1, :count) RETURNING id"),
                {"count": count if lane is None else 16},
            )
            made += [user_id for user_id in ids if lane is None or lane_of(user_id) == lane]
    return made[:count]


def new_user(lane: int | None = None) -> int:
    return new_users(1, lane)[0]


def plain_engine(database: str | None = None) -> Engine:
    """Autocommit, without our session settings: as an operator's psql or another program would connect."""
    url = make_url(settings().database_url)
    url = url.set(database=database or url.database)
    return create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")


def run_sql(statement: str, **parameters: object) -> None:
    with plain_engine().connect() as connection:
        connection.execute(text(statement), parameters)


@contextmanager
def outsider() -> Iterator[Connection]:
    """A session of another program, in a transaction of its own that is rolled back unless it commits."""
    with plain_engine().execution_options(isolation_level="READ COMMITTED").connect() as connection:
        yield connection


@contextmanager
def recorded_statements() -> Iterator[list[tuple[str, Any]]]:
    """Fills the list with the statements that our engine sends, each with its parameters."""
    sent: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        sent.append((statement, parameters))

    event.listen(engine(), "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine(), "before_cursor_execute", note)


def await_waiter(connection: Connection, seconds: float = 1.5) -> None:
    """Return once some session waits for a lock that this connection's session holds."""
    pid = connection.scalar(text("SELECT pg_backend_pid()"))
    waiters = text("SELECT count(*) FROM pg_stat_activity WHERE :pid = ANY(pg_blocking_pids(pid))")
    with plain_engine().connect() as watch:
        wait_until(lambda: watch.scalar(waiters, {"pid": pid}), "a session waits", seconds, 0.01)


def prune() -> int:
    """Takes away what is old, some rows of each kind, as the notifier's duties do. Returns how many."""
    return prune_deleted() + prune_delivered() + prune_events() + prune_secrets()
