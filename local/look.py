"""A look into a database before the service, with its engine and its settings, is there."""

import os
from contextlib import closing

import psycopg2  # type: ignore[import-untyped]

from local.command import CommandError


def clear_libpq_environment() -> None:
    """The embedded server has no TLS and no services file: what a shell says in PG* is not meant for it."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]


def check_answers(url: str) -> None:
    """Raises CommandError unless the database can be reached."""
    has_rows(url, "SELECT 1")


def has_rows(url: str, statement: str) -> bool:
    """False also where a table of the statement is not there yet. Raises CommandError."""
    try:
        with closing(psycopg2.connect(url, connect_timeout=5)) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone() is not None
    except psycopg2.errors.UndefinedTable:
        return False
    except psycopg2.Error as error:
        raise CommandError(f"the database does not serve: {' '.join(str(error).split())}") from None
