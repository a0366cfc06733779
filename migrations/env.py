"""How alembic reaches the database: by the options, under an advisory lock, with short time-outs.

Each migration is a transaction of its own. One that cannot get its table lock at once gives way rather than queue every
payment behind it; a later run goes on from there. The lock is held by a second connection, because an index that is built
beside running payments (migrations/online.py) needs the end of the migration's transaction.
"""

import time

from alembic import context
from sqlalchemy import Connection, create_engine, text

from migrations.grants import grant
from shared.settings import settings
from shared.webhook_models import metadata

LOCK = 0x7061796D656E7473  # "payments": two runs at once come one after the other


LOCK_INTERVAL_SECONDS = 0.2
TIME_OUTS = "-c lock_timeout=2s -c statement_timeout=60s"


def _await_lock(holder: Connection) -> None:
    """Waits for another run to end. Never within a statement: its snapshot would be waited for, without end, by an index that
    the other run builds beside running payments.
    """
    while not holder.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": LOCK}):
        holder.rollback()
        time.sleep(LOCK_INTERVAL_SECONDS)


def run() -> None:
    engine = create_engine(settings().database_url, connect_args={"connect_timeout": 3, "options": TIME_OUTS})
    try:
        with engine.connect() as holder, engine.connect() as connection:
            _await_lock(holder)
            context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=True)
            context.run_migrations()
            if role := settings().app_role:
                grant(connection, role)
            connection.commit()
    finally:
        engine.dispose()


run()
