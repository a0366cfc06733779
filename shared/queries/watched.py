"""Statements for monitoring: the last verification, and the oldest transaction that holds vacuum back."""

from sqlalchemy import Connection, text

from shared.model import RowCounts, Verification

_INSERT_VERIFICATION = text("""
    INSERT INTO verifications (users, entries, differences, whole) VALUES (:users, :entries, :differences, :whole)
""")
_FIND_VERIFICATION = text("""
    SELECT extract(epoch FROM clock_timestamp() - finished_at) AS age_seconds, differences
    FROM verifications ORDER BY id DESC LIMIT 1
""")
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


def insert_verification(connection: Connection, counts: RowCounts, differences: int, whole: bool) -> None:
    """Stores the result of a verification. `whole`: it checked all rows, not only new ones."""
    values = {"users": counts.users, "entries": counts.entries, "differences": differences, "whole": whole}
    connection.execute(_INSERT_VERIFICATION, values)


def find_verification(connection: Connection) -> Verification | None:
    """Returns the last verification, with its age in seconds, or None if there is none."""
    row = connection.execute(_FIND_VERIFICATION).one_or_none()
    return Verification(max(0.0, float(row.age_seconds)), row.differences) if row else None


def read_oldest_snapshot(connection: Connection) -> float:
    """Returns the age, in seconds, of the oldest transaction that keeps vacuum from removing dead rows."""
    return max(0.0, float(connection.scalar(_OLDEST_SNAPSHOT) or 0))
