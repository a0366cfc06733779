"""The triggers and constraints by which the database prevents wrong data, and a statement that checks them."""

from typing import Final, NamedTuple

from sqlalchemy import Connection, text

# Without these triggers stored history could be changed.
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


# A test checks that the migrations create exactly these.
CONSTRAINTS: Final = {
    "users": (
        *("users_pkey", "users_idempotency_key_key", "users_name_check"),
        *("users_balance_not_negative", "users_balance_limit"),
    ),
    "transactions": (
        *("transactions_pkey", "transactions_user_id_check", "transactions_type_check", "transactions_amount_check"),
        *("transactions_status_check", "transactions_reason_check", "transactions_settled_check"),
        "transactions_parked_check",
    ),
    "ledger": (
        *("ledger_pkey", "ledger_uid_key", "ledger_seq_check", "ledger_amount_check"),
        *("ledger_balance_after_not_negative", "ledger_history_check"),
    ),
    "events": ("events_pkey", "events_user_id_user_seq_key", "events_type_check"),
    "api_keys": ("api_keys_pkey", "api_keys_name_check", "api_keys_scope_check", "api_keys_secret_hash_check"),
    "verifications": ("verifications_pkey",),
    "verification_marks": ("verification_marks_pkey",),
    "operator_actions": ("operator_actions_pkey",),
    "webhooks": ("webhooks_pkey", "webhooks_url_check", "webhooks_events_check", "webhooks_threshold_check"),
    "webhook_secrets": ("webhook_secrets_pkey",),
    "webhook_cursors": ("webhook_cursors_pkey",),
    "deliveries": (
        *("deliveries_pkey", "deliveries_over_check", "deliveries_next_check"),
        "deliveries_claimed_check",
    ),
}


class DatabaseGuard(NamedTuple):
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


def find_missing_guards(connection: Connection) -> list[DatabaseGuard]:
    """Returns the triggers that are missing or disabled, and the constraints that are missing or not valid."""
    triggers = [DatabaseGuard("trigger", name, table) for name, table in TRIGGERS.items()]
    constraints = [DatabaseGuard("constraint", name, table) for table, names in CONSTRAINTS.items() for name in names]
    in_force = {DatabaseGuard("trigger", *row) for row in connection.execute(_TRIGGERS)}
    in_force |= {DatabaseGuard("constraint", *row) for row in connection.execute(_CONSTRAINTS)}
    return sorted({*triggers, *constraints} - in_force)
