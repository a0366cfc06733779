"""Steps of a migration that never block payments: indexes are built and dropped while rows are written.

Each step is a separate statement outside the migration's transaction, without time-outs. It may wait long for old
snapshots, but no payment waits for it. An interrupted migration runs again from its beginning, so each step, and
everything that the migration does before it, must be repeatable.
"""

from alembic import op


def build_index(name: str, definition: str) -> None:
    """Builds an index. An INVALID index, left by an interrupted build, is dropped first."""
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
