"""How alembic reaches the database: by the options, under an advisory lock, with short time-outs.

A migration that cannot get its table lock at once gives way rather than queue every payment behind it.
"""

from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, create_engine, text

from migrations.grants import grant
from shared.logs import get_logger
from shared.models import MIGRATION
from shared.processes import operator
from shared.queries import actions
from shared.settings import settings
from shared.webhook_models import metadata

LOCK = 0x7061796D656E7473  # "payments": two runs at once come one after the other


log = get_logger("migrations")


def run() -> None:
    engine = create_engine(settings().database_url, connect_args={"connect_timeout": 3})
    try:
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            connection.execute(text("SET LOCAL lock_timeout = '2s'"))
            connection.execute(text("SET LOCAL statement_timeout = '60s'"))
            newer = _newer_revision(connection)
            applied = [] if newer else _migrate(connection)
            if role := settings().app_role:
                # the newer release may have granted more, and may still be running
                grant(connection, role, keep_others=newer is not None)
    finally:
        engine.dispose()
    if newer:
        log.warning("the database is newer than this release: nothing is migrated", database=newer, release=MIGRATION)
    else:
        log.info("migrations are applied", new=applied)


def _newer_revision(connection: Connection) -> str | None:
    """Returns the database's revision if it is beyond this release's newest; None for any other, known or not."""
    heads = MigrationContext.configure(connection).get_current_heads()
    newer = [head for head in heads if head.isascii() and head.isdigit() and head > MIGRATION]
    return newer[0] if len(heads) == len(newer) == 1 else None


def _migrate(connection: Connection) -> list[str]:
    """Apply what is missing, and record it; returns the revisions."""
    applied: list[str] = []

    def note(**arguments: Any) -> None:
        applied.extend(arguments["step"].up_revision_ids)

    context.configure(
        connection=connection,
        target_metadata=metadata,
        on_version_apply=note,  # type: ignore[arg-type] # it is called with keywords alone
    )
    context.run_migrations()
    for revision in applied:
        actions.record(connection, operator(), "migration.apply", revision)
    return applied


run()
