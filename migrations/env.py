"""How alembic reaches the database: by the options, under an advisory lock, with short time-outs.

Each migration is a transaction of its own. One that cannot get its table lock at once gives way rather than queue every
payment behind it; a later run goes on from there. The lock is held by a second connection, because an index that is built
beside running payments (migrations/online.py) needs the end of the migration's transaction.
"""

import time
from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, create_engine, text

from migrations.grants import grant
from shared.health import MIGRATION
from shared.logs import get_logger
from shared.processes import operator_name
from shared.queries import actions
from shared.settings import settings

LOCK = 0x7061796D656E7473  # "payments": two runs at once come one after the other
LOCK_INTERVAL_SECONDS = 0.2
TIME_OUTS = "-c lock_timeout=2s -c statement_timeout=60s"

log = get_logger("migrations")


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
            newer = _newer_revision(holder)
            applied = [] if newer else _migrate(connection)
            if role := settings().app_role:
                # the newer release may have granted more, and may still be running
                grant(connection, role, keep_others=newer is not None)
            connection.commit()
    finally:
        engine.dispose()
    if newer:
        log.warning("database newer than this release", database=newer, release=MIGRATION)
    else:
        log.info("migrations applied", new=applied)


def _newer_revision(connection: Connection) -> str | None:
    """Returns the database's revision if it is beyond this release's newest; None for any other, known or not."""
    heads = MigrationContext.configure(connection).get_current_heads()
    newer = [head for head in heads if head.isascii() and head.isdigit() and head > MIGRATION]
    return newer[0] if len(heads) == len(newer) == 1 else None


def _migrate(connection: Connection) -> list[str]:
    """Apply what is missing; returns the revisions. Each is recorded in its own transaction.

    Those before the migration that makes the table of operator actions are recorded with that one.
    """
    applied: list[str] = []
    unrecorded: list[str] = []

    def note(**arguments: Any) -> None:
        revisions = arguments["step"].up_revision_ids
        applied.extend(revisions)
        unrecorded.extend(revisions)
        if connection.scalar(text("SELECT to_regclass('operator_actions') IS NOT NULL")):
            for revision in unrecorded:
                actions.record(connection, operator_name(), "migration.apply", revision)
            unrecorded.clear()

    context.configure(
        connection=connection,
        transaction_per_migration=True,
        on_version_apply=note,  # type: ignore[arg-type] # it is called with keywords alone
    )
    context.run_migrations()
    return applied


run()
