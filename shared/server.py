"""The database server: its clock, its migration, its durability settings, its oldest snapshot."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, text

# Vacuum workers and other databases do not hold vacuum back. The start of other roles' transactions is visible only to
# members of pg_read_all_stats.
_OLDEST_SNAPSHOT = text("""
    SELECT coalesce(extract(epoch FROM clock_timestamp() - min(since)), 0) FROM (
        SELECT xact_start AS since FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type <> 'autovacuum worker'
          AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
        UNION ALL
        SELECT prepared FROM pg_prepared_xacts WHERE database = current_database()
    ) AS holder
""")

_READ_CLOCK = text("SELECT clock_timestamp()")


class ServerState(NamedTuple):
    """The newest applied migration, or None, and the settings that a durable commit depends on."""

    migration: str | None
    fsync: str
    full_page_writes: str


_HAS_MIGRATIONS = text("SELECT to_regclass('alembic_version') IS NOT NULL")
_STATE = "SELECT {migration}, current_setting('fsync'), current_setting('full_page_writes')"
_STATE_WITHOUT = text(_STATE.format(migration="NULL"))
_STATE_WITH = text(_STATE.format(migration="(SELECT max(version_num) FROM alembic_version)"))


def read_state(connection: Connection) -> ServerState:
    """Returns the newest applied migration and the settings for durability."""
    migrated = connection.scalar(_HAS_MIGRATIONS)
    return ServerState(*connection.execute(_STATE_WITH if migrated else _STATE_WITHOUT).one())


def read_clock(connection: Connection) -> datetime:
    """Returns the database clock (UTC) at this moment, not at the start of the transaction."""
    moment: datetime = connection.execute(_READ_CLOCK).scalar_one()
    return moment


def read_oldest_snapshot(connection: Connection) -> float:
    """Returns the age, in seconds, of the oldest transaction that keeps vacuum from removing dead rows."""
    return max(0.0, float(connection.scalar(_OLDEST_SNAPSHOT) or 0))
