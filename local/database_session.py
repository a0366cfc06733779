"""A command's access to the service's database. All commands use it, so that a failure is one line.

A command imports SQLAlchemy, Celery and Flask only when it runs, so that `up` and `ps` start fast.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local.command import CommandError
from local.stack.run_state import connect_to
from shared.errors import PaymentsError
from shared.settings import settings


@contextmanager
def database_session(data: Path) -> Iterator[None]:
    """Makes the use cases of `shared` work on the service that runs on this data, or else on DATABASE_URL.

    Raises CommandError if a use case or the database fails.
    """
    import psycopg2  # type: ignore[import-untyped]
    from sqlalchemy.exc import SQLAlchemyError

    from shared import logs
    from shared.database import engine, first_line

    os.environ["DATABASE_URL"] = connect_to(data).database_url
    os.environ["PAYMENTS_PROCESS"] = "command"
    os.environ["PAYMENTS_LOG_LEVEL"] = "error"  # standard output belongs to the command
    settings.cache_clear()
    logs.configure()
    try:
        yield
    except PaymentsError as error:
        raise CommandError(error.detail) from None
    except (SQLAlchemyError, psycopg2.Error) as error:  # psycopg2.Error: a connection lost while it is prepared
        raise CommandError(f"the database does not serve: {first_line(getattr(error, 'orig', error))}") from None
    finally:
        engine().dispose()
