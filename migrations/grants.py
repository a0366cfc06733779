"""The privileges of the database role of web and workers. They do not allow a change of past transactions.

Triggers refuse such a change, too. But an owner can drop a trigger, and this role cannot.
"""

from typing import Final

from sqlalchemy import Connection, text

KEPT: Final = "SELECT, INSERT, UPDATE, DELETE"
GRANTS: Final = {
    "users": "SELECT, INSERT, UPDATE (balance, last_seq, last_history_at, last_event_seq)",
    "transactions": "SELECT, INSERT, UPDATE (status, reason, settled_at, parked_at, attempts, last_error, lowest_balance)",
    "ledger": "SELECT, INSERT",
    "events": "SELECT, INSERT, DELETE",
    "webhooks": KEPT,
    "webhook_cursors": KEPT,
    "webhook_secrets": "SELECT, INSERT, DELETE",
    "deliveries": KEPT,
    "verifications": "SELECT, INSERT",
    "verification_marks": "SELECT, INSERT, UPDATE",
    "operator_actions": "SELECT, INSERT",
    "api_keys": "SELECT",
    "alembic_version": "SELECT",
}


def grant(connection: Connection, role: str, *, keep_others: bool = False) -> None:
    """Grants the role these privileges. Revokes its other privileges on these tables, unless `keep_others`.

    Raises ProgrammingError if there is no such role.
    """
    for table, privileges in GRANTS.items():
        if not keep_others:
            connection.execute(text(f'REVOKE ALL ON {table} FROM "{role}"'))
        connection.execute(text(f'GRANT {privileges} ON {table} TO "{role}"'))
    connection.execute(text(f'GRANT USAGE ON SEQUENCE transactions_accept_order_seq TO "{role}"'))
    connection.execute(text(f'GRANT SELECT ON SEQUENCE events_id_seq TO "{role}"'))
