"""The state of the database as probes and operators see it: its migration, its settings, what holds back vacuum."""

from typing import Final

from shared import server
from shared.database import autocommit, transaction
from shared.errors import NotReady
from shared.server import ServerState

MIGRATION: Final = "0009"  # the newest migration that this code needs


def check_server() -> None:
    """Checks the schema and the settings of the database. Raises NotReady if it could lose a payment."""
    with transaction() as connection:
        state = server.read_state(connection)
    check_migration(state)
    for name in unsafe_settings(state):
        raise NotReady(f"Postgres runs with {name} off: a crash would lose payments.")


def check_migration(state: ServerState) -> None:
    """Checks the applied migration. Raises NotReady if the schema is older than this code."""
    if state.migration is None or state.migration < MIGRATION:
        raise NotReady(f"The database is at migration {state.migration}; {MIGRATION} is needed.")


def unsafe_settings(state: ServerState) -> dict[str, str]:
    """Returns the settings, by name, whose values let a crash of the server lose committed data."""
    durable = {"fsync": state.fsync, "full_page_writes": state.full_page_writes}
    return {name: value for name, value in durable.items() if value != "on"}


def get_oldest_snapshot_seconds() -> float:
    """Returns the age, in seconds, of the oldest transaction that holds back vacuum."""
    with autocommit() as connection:
        return server.read_oldest_snapshot(connection)
