"""Statements on the results of `verify`: stored, and the last one read."""

from sqlalchemy import Connection, text

from shared.payments.model import RowCounts, Verification

_INSERT_VERIFICATION = text("""
    INSERT INTO verifications (users, entries, differences, whole) VALUES (:users, :entries, :differences, :whole)
""")
_FIND_VERIFICATION = text("""
    SELECT extract(epoch FROM clock_timestamp() - finished_at) AS age_seconds, differences
    FROM verifications ORDER BY id DESC LIMIT 1
""")


def insert_verification(connection: Connection, counts: RowCounts, differences: int, whole: bool) -> None:
    """Stores the result of a verification. `whole`: it checked all rows, not only new ones."""
    values = {"users": counts.users, "entries": counts.entries, "differences": differences, "whole": whole}
    connection.execute(_INSERT_VERIFICATION, values)


def find_verification(connection: Connection) -> Verification | None:
    """Returns the last verification, with its age in seconds, or None if there is none."""
    row = connection.execute(_FIND_VERIFICATION).one_or_none()
    return Verification(max(0.0, float(row.age_seconds)), row.differences) if row else None
