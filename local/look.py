"""Reads a database before the service's engine and settings are available."""

import os
from contextlib import closing

import psycopg2  # type: ignore[import-untyped]

from local.command import CommandError


def clear_libpq_environment() -> None:
    """Removes the shell's PG* variables. They are meant for other servers: the embedded one has no TLS, for example."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]


def check_answers(url: str) -> None:
    """Raises CommandError if the database cannot be reached."""
    has_rows(url, "SELECT 1")


def has_rows(url: str, statement: str) -> bool:
    """Returns whether the statement has a row; False if one of its tables does not exist yet.

    Raises CommandError if the database cannot be read.
    """
    try:
        with closing(psycopg2.connect(url, connect_timeout=5)) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone() is not None
    except psycopg2.errors.UndefinedTable:
        return False
    except psycopg2.Error as error:
        raise CommandError(f"the database does not serve: {' '.join(str(error).split())}") from None
