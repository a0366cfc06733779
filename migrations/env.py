"""Alembic's environment: runs the migrations under an advisory lock, with short time-outs.

Each migration is one transaction. A migration that does not get its table lock at once fails, because every payment
would queue behind it. A later run continues there. A second connection holds the advisory lock, because the migration's
transaction must end before an index is built online (migrations/online.py).
"""

import time
from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, create_engine, text

from migrations.grants import grant
from shared import operator_actions
from shared.health import MIGRATION
from shared.logs import get_logger
from shared.processes import operator_name
from shared.settings import settings

LOCK = 0x7061796D656E7473  # "payments" in ASCII
LOCK_INTERVAL_SECONDS = 0.2
TIME_OUTS = "-c lock_timeout=2s -c statement_timeout=60s"

log = get_logger("migrations")


def _await_lock(holder: Connection) -> None:
    """Waits until no other run holds the lock.

    It polls. A statement that waits would keep its snapshot, and an index that the other run builds online would wait
    for that snapshot without end.
    """
    while not holder.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": LOCK}):
        holder.rollback()
        time.sleep(LOCK_INTERVAL_SECONDS)


def run() -> None:
    engine = create_engine(settings().database_url, connect_args={"connect_timeout": 3, "options": TIME_OUTS})
    try:
        with engine.connect() as holder, engine.connect() as connection:
            _await_lock(holder)
            newer = _newer_revision(holder)
            applied = [] if newer else _migrate(connection)
            if role := settings().app_role:
                # A newer release may have granted more privileges, and may still be running.
                grant(connection, role, keep_others=newer is not None)
            connection.commit()
    finally:
        engine.dispose()
    if newer:
        log.warning("database newer than this release", database=newer, release=MIGRATION)
    else:
        log.info("migrations applied", new=applied)


def _newer_revision(connection: Connection) -> str | None:
    """Returns the database's revision if it is newer than this release; None for any other revision."""
    heads = MigrationContext.configure(connection).get_current_heads()
    newer = [head for head in heads if head.isascii() and head.isdigit() and head > MIGRATION]
    return newer[0] if len(heads) == len(newer) == 1 else None


def _migrate(connection: Connection) -> list[str]:
    """Applies the missing migrations and returns their revisions. Each is recorded in its own transaction.

    The migrations before the one that creates the table of operator actions are recorded together with that one.
    """
    applied: list[str] = []
    unrecorded: list[str] = []

    def note(**arguments: Any) -> None:
        revisions = arguments["step"].up_revision_ids
        applied.extend(revisions)
        unrecorded.extend(revisions)
        if connection.scalar(text("SELECT to_regclass('operator_actions') IS NOT NULL")):
            for revision in unrecorded:
                operator_actions.record(connection, operator_name(), "migration.apply", revision)
            unrecorded.clear()

    context.configure(
        connection=connection,
        transaction_per_migration=True,
        on_version_apply=note,  # type: ignore[arg-type] # alembic passes only keyword arguments
    )
    context.run_migrations()
    return applied


run()
