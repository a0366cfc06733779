"""A test's own sessions on the service's database."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg2  # type: ignore[import-untyped]

LANES = 16


def query(database_url: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Runs a statement in a transaction of its own and returns its rows."""
    with closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement, values)
        return list(cursor.fetchall())


def count_rows(database_url: str) -> tuple[Any, ...]:
    """Returns the number of users and of transactions. Not of entries: those of earlier transactions may still come."""
    return query(database_url, "SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM transactions)")[0]


@contextmanager
def held_lane(database_url: str, user_id: int) -> Iterator[None]:
    """Keeps the user's lane from being settled: holds the lock that a worker takes for that."""
    with closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(7411, %s)", [user_id % LANES])
        yield


@contextmanager
def row_lock(database_url: str, user_id: int) -> Iterator[None]:
    """Locks the user's row: a batch with payments of this user waits there."""
    with closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("SELECT FROM users WHERE id = %s FOR UPDATE", [user_id])
        yield
