"""What the database itself holds against mistakes, ours and an operator's: triggers and constraints, in force or not."""

from typing import Final, NamedTuple

from sqlalchemy import Connection, text

from shared.webhook_models import metadata

# Without these the past could be changed. The constraints are those of shared.models.
TRIGGERS: Final = {
    "ledger_append_only": "ledger",
    "ledger_past_not_negative": "ledger",
    "operator_actions_append_only": "operator_actions",
    "operator_actions_kept": "operator_actions",
    "transactions_born_pending": "transactions",
    "transactions_content": "transactions",
    "transactions_final": "transactions",
    "transactions_kept": "transactions",
    "users_kept": "users",
}


class Guard(NamedTuple):
    """A trigger or a constraint, by name."""

    kind: str
    name: str
    table: str


_TRIGGERS = text("""
    SELECT tgname, relname FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
    WHERE relnamespace = CAST(current_schema() AS regnamespace) AND tgenabled IN ('O', 'A')
""")
_CONSTRAINTS = text("""
    SELECT conname, relname FROM pg_constraint JOIN pg_class ON pg_class.oid = conrelid
    WHERE relnamespace = CAST(current_schema() AS regnamespace) AND convalidated
""")


def find_missing_guards(connection: Connection) -> list[Guard]:
    """Triggers that are missing or disabled, and constraints that are missing or not valid."""
    triggers = [Guard("trigger", name, table) for name, table in TRIGGERS.items()]
    tables = metadata.tables.values()
    constraints = [Guard("constraint", str(c.name), table.name) for table in tables for c in table.constraints]
    in_force = {Guard("trigger", *row) for row in connection.execute(_TRIGGERS)}
    in_force |= {Guard("constraint", *row) for row in connection.execute(_CONSTRAINTS)}
    return sorted({*triggers, *constraints} - in_force)
