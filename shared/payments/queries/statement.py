"""The statement of a user: pages of transactions by key, the newest accepted first.

A page reads a bounded number of rows, so that no filter reads a whole history. With a filter for a rare status, a page
may have fewer items than its limit, or none, and still have a next page.
"""

from typing import Any, Final

from sqlalchemy import Connection, text

from shared.payments.model import StatementFilter, StatementKey, Transaction
from shared.payments.queries.transactions import TRANSACTION_COLUMNS, transaction_of

MAX_SCANNED_ROWS: Final = 10_000
_NEWEST_FIRST: Final = "ORDER BY t.accepted_at DESC, t.accept_order DESC"


def read_statement(
    connection: Connection, user_id: int, filters: StatementFilter, after: StatementKey | None, limit: int
) -> list[Transaction]:
    """Returns up to `limit` matching transactions after the key. It reads at most MAX_SCANNED_ROWS rows."""
    conditions, parameters = _range(user_id, filters, after)
    equalities = {"t.status = :status": filters.status, "t.type = :type": filters.type}
    narrowed = {condition: value for condition, value in equalities.items() if value is not None}
    rows = f"SELECT * FROM transactions t WHERE {conditions} {_NEWEST_FIRST} LIMIT :scanned"
    if narrowed:
        rows = f"SELECT * FROM ({rows}) AS t WHERE {' AND '.join(narrowed)} {_NEWEST_FIRST} LIMIT :limit"
    # OFFSET 0 forces a look-up of each row's entry, so that the planner never reads the whole ledger.
    statement = text(f"""
        SELECT {TRANSACTION_COLUMNS}, entry.effective_at, entry.balance_after FROM ({rows}) AS t LEFT JOIN LATERAL (
            SELECT effective_at, balance_after FROM ledger WHERE ledger.uid = t.uid OFFSET 0
        ) AS entry ON true {_NEWEST_FIRST} LIMIT :limit
    """)
    scanned = MAX_SCANNED_ROWS if narrowed else limit
    names = {condition.split(":")[1]: value for condition, value in narrowed.items()}
    result = connection.execute(statement, {**parameters, **names, "limit": limit, "scanned": scanned})
    return [transaction_of(row) for row in result]


def find_scan_end(
    connection: Connection, user_id: int, filters: StatementFilter, after: StatementKey | None
) -> StatementKey | None:
    """Returns the key of the last row that `read_statement` reads, or None if no row follows it."""
    conditions, parameters = _range(user_id, filters, after)
    statement = text(
        f"SELECT accepted_at, accept_order FROM transactions t WHERE {conditions} {_NEWEST_FIRST} OFFSET :last LIMIT 2"
    )
    rows = connection.execute(statement, {**parameters, "last": MAX_SCANNED_ROWS - 1}).all()
    return StatementKey(*rows[0]) if len(rows) > 1 else None


def _range(user_id: int, filters: StatementFilter, after: StatementKey | None) -> tuple[str, dict[str, Any]]:
    """Returns the conditions that the index can find, and their parameters."""
    conditions = ["t.user_id = :user_id"]
    parameters: dict[str, Any] = {"user_id": user_id}
    if filters.since is not None:
        conditions.append("t.accepted_at >= :since")
        parameters["since"] = filters.since
    if filters.until is not None:
        conditions.append("t.accepted_at < :until")
        parameters["until"] = filters.until
    if after is not None:
        conditions.append("(t.accepted_at, t.accept_order) < (:accepted_at, :accept_order)")
        parameters.update(after._asdict())
    return " AND ".join(conditions), parameters
