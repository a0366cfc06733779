"""How alembic reaches the database: by the options, under an advisory lock, with short time-outs.

A migration that cannot get its table lock at once gives way rather than queue every payment behind it.
"""

from alembic import context
from sqlalchemy import create_engine, text

from migrations.grants import grant
from shared.settings import settings
from shared.webhook_models import metadata

LOCK = 0x7061796D656E7473  # "payments": two runs at once come one after the other


def run() -> None:
    engine = create_engine(settings().database_url, connect_args={"connect_timeout": 3})
    try:
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            connection.execute(text("SET LOCAL lock_timeout = '2s'"))
            connection.execute(text("SET LOCAL statement_timeout = '60s'"))
            context.configure(connection=connection, target_metadata=metadata)
            context.run_migrations()
            if role := settings().app_role:
                grant(connection, role)
    finally:
        engine.dispose()


run()
