"""How alembic reaches the database: by the options, under an advisory lock, with short time-outs.

Each migration is a transaction of its own. One that cannot get its table lock at once gives way rather than queue every
payment behind it; a later run goes on from there. The lock is held by a second connection, because an index that is built
beside running payments (migrations/online.py) needs the end of the migration's transaction.
"""

from alembic import context
from sqlalchemy import create_engine, text

from migrations.grants import grant
from shared.settings import settings
from shared.webhook_models import metadata

LOCK = 0x7061796D656E7473  # "payments": two runs at once come one after the other


TIME_OUTS = "-c lock_timeout=2s -c statement_timeout=60s"


def run() -> None:
    engine = create_engine(settings().database_url, connect_args={"connect_timeout": 3, "options": TIME_OUTS})
    try:
        with engine.begin() as holder, engine.connect() as connection:
            holder.execute(text("SET LOCAL lock_timeout = 0"))
            holder.execute(text("SET LOCAL statement_timeout = 0"))
            holder.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=True)
            context.run_migrations()
            if role := settings().app_role:
                grant(connection, role)
            connection.commit()
    finally:
        engine.dispose()


run()
