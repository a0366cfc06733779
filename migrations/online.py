"""Steps of a migration that never block payments: indexes are built and dropped while rows are written.

Each is a statement of its own, outside the migration's transaction, without time-outs: it may wait long for old
snapshots, and nobody waits for it. A migration that was interrupted is run again from its beginning, so each step,
and whatever a migration does before it, must do no harm the second time.
"""

from alembic import op


def build_index(name: str, definition: str) -> None:
    """Builds an index; one that an interrupted build left behind (it would be INVALID) is built anew."""
    _run(f"DROP INDEX CONCURRENTLY IF EXISTS {name}", f"CREATE INDEX CONCURRENTLY {name} ON {definition}")


def drop_index(name: str) -> None:
    """Drops an index, if it exists."""
    _run(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")


def _run(*statements: str) -> None:
    with op.get_context().autocommit_block():
        for statement in ("SET lock_timeout = 0", "SET statement_timeout = 0", *statements):
            op.execute(statement)
        op.execute("RESET lock_timeout")
        op.execute("RESET statement_timeout")
