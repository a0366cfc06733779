"""Statements on what an operator watches besides the backlog: the last proof of the books, what holds back vacuum."""

from sqlalchemy import Connection, text

from shared.model import RowCounts, Verification

_INSERT_VERIFICATION = text("""
    INSERT INTO verifications (users, entries, differences, whole) VALUES (:users, :entries, :differences, :whole)
""")
_FIND_VERIFICATION = text("""
    SELECT extract(epoch FROM clock_timestamp() - finished_at) AS age_seconds, differences
    FROM verifications ORDER BY id DESC LIMIT 1
""")
# Vacuum itself holds nothing back; nor do other databases. Of other roles' sessions the instant is seen only by who is a
# member of pg_read_all_stats.
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
    """Store a result; `whole`: everything was checked, not only what was new."""
    values = {"users": counts.users, "entries": counts.entries, "differences": differences, "whole": whole}
    connection.execute(_INSERT_VERIFICATION, values)


def find_verification(connection: Connection) -> Verification | None:
    row = connection.execute(_FIND_VERIFICATION).one_or_none()
    return Verification(max(0.0, float(row.age_seconds)), row.differences) if row else None


def read_oldest_snapshot(connection: Connection) -> float:
    """For how many seconds the oldest transaction has kept rows that nobody else can see any more."""
    return max(0.0, float(connection.scalar(_OLDEST_SNAPSHOT) or 0))
