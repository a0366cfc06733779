"""Statements on the database server: its clock, its migration and its settings for durability."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, text

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
