"""The one way from a command to the books: the database of the running service, and its failures as one line.

Whoever goes this way imports SQLAlchemy, Celery and Flask only when it runs: `up` and `ps` need not wait for them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local.command import CommandError
from local.state import connect_to
from shared.errors import PaymentsError
from shared.settings import settings


@contextmanager
def database_session(data: Path) -> Iterator[None]:
    """Within it, shared's use cases work on the service that runs on this data, or on DATABASE_URL."""
    import psycopg2  # type: ignore[import-untyped]
    from sqlalchemy.exc import SQLAlchemyError

    from shared import logs
    from shared.database import engine, first_line

    os.environ["DATABASE_URL"] = connect_to(data).database_url
    os.environ["PAYMENTS_PROCESS"] = "command"
    os.environ["PAYMENTS_LOG_LEVEL"] = "error"  # standard output is the command's
    settings.cache_clear()
    logs.configure()
    try:
        yield
    except PaymentsError as error:
        raise CommandError(error.detail) from None
    except (SQLAlchemyError, psycopg2.Error) as error:  # psycopg2's own: a connection lost while it is prepared
        raise CommandError(f"the database does not serve: {first_line(getattr(error, 'orig', error))}") from None
    finally:
        engine().dispose()
