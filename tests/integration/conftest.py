"""A real Postgres built by the migrations, and a check after every test that the books balance.

With DATABASE_URL set, a database of our own is made in that server and dropped at the end; without it, a server
of our own is started. Rows cannot be taken away (triggers refuse it), so each test makes its own users.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest
import structlog
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.pool import NullPool

from shared import database
from shared.payments import doorbell
from shared.payments.model import LANES
from shared.payments.queries.lanes import find_overdue_lanes
from shared.payments.settle import settle_lanes
from shared.settings import settings
from shared.webhooks import manage
from tests.integration.bells import broker_url  # noqa: F401 - a fixture
from tests.integration.factories import prune, run_sql
from tests.integration.invariants import assert_books_balance, newest_user
from tests.integration.planted_bug import bug  # noqa: F401 - a fixture
from tests.kit.processes import ROOT
from tests.kit.servers import embedded_postgres

NOBODY_LISTENS = "redis://127.0.0.1:1/0"  # the doorbell must be harmless without a broker


structlog.configure(  # so that pytest shows the log of a test that fails
    processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer(key_order=["event"])],
    logger_factory=structlog.stdlib.LoggerFactory(),
)


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server in which databases can be made."""
    if url := os.environ.get("DATABASE_URL"):
        yield url
    else:
        with embedded_postgres(tmp_path_factory.mktemp("postgres")) as url:
            yield url


@pytest.fixture(scope="session", autouse=True)
def database_url(server_url: str) -> Iterator[str]:
    """The database that all tests share; the code under test finds it by the environment, as ever."""
    with pytest.MonkeyPatch.context() as patch, empty_database(server_url) as url:
        patch.setenv("DATABASE_URL", url)
        patch.setenv("BROKER_URL", NOBODY_LISTENS)
        patch.setenv("PAYMENTS_WEB_CONNECTIONS", "40")
        forget_settings()
        migrate(url)
        try:
            yield url
        finally:
            database.engine().dispose()
            forget_settings()


@pytest.fixture(autouse=True)
def the_books_balance(database_url: str) -> Iterator[None]:
    """After every test: what it left is settled, and its users' books balance."""
    above = newest_user()
    yield
    run_sql("UPDATE transactions SET parked_at = NULL WHERE status = 'PENDING' AND parked_at IS NOT NULL")
    while overdue := _lanes_with_work():
        for lane in overdue:
            settle_lanes([lane])
    assert_books_balance(above)


@pytest.fixture
def receivers_on_loopback(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Allows webhooks to the receivers of tests, and deletes all webhooks at the end, so that the next test has none."""
    monkeypatch.setenv("WEBHOOK_ALLOW_PRIVATE", "1")
    settings.cache_clear()
    yield
    for webhook in manage.list_all():
        manage.delete(webhook.id)
    while prune():
        pass
    settings.cache_clear()


def _lanes_with_work() -> list[int]:
    with database.transaction() as connection:
        return find_overdue_lanes(connection, LANES, seconds=0)


def forget_settings() -> None:
    for cached in (settings, database.engine, doorbell._redis, doorbell._sender):
        cached.cache_clear()


def migrate(url: str) -> subprocess.CompletedProcess[str]:
    """Run the migrations as an operator does."""
    return subprocess.run(
        [sys.executable, "-m", "migrations"],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=True,
    )


@contextmanager
def empty_database(server_url: str) -> Iterator[str]:
    """A new database in the server, dropped at the end."""
    server = make_url(server_url).set(drivername="postgresql+psycopg2")
    name = f"payments_test_{uuid4().hex}"
    with create_engine(server, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE template0"))
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        with create_engine(server, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect() as connection:
            drop_database(connection, name)


def drop_database(connection: Connection, name: str) -> None:
    """Drop it with its sessions. A worker of autovacuum may be in it: only a superuser may end that, and it leaves by itself."""
    for tries_left in reversed(range(300)):
        try:
            connection.execute(text(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))
        except ProgrammingError:
            if not tries_left:
                raise
            time.sleep(0.1)
        else:
            return
