"""The tables, as the code sees them. migrations/ makes them; a test says that the two agree.

Amounts are bigint minor units, instants timestamptz. There are no foreign keys on the money's path: users are
never deleted (a trigger refuses it), accepting joins them, and the check would cost a row lock per payment.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Sequence,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

MIGRATION: Final = "0009"  # the newest one that this code needs

metadata = MetaData()
accept_order = Sequence("transactions_accept_order_seq", metadata=metadata, cache=1, data_type=BigInteger)

INSTANT: Final = DateTime(timezone=True)
_pending = "status = 'PENDING'"

users = Table(
    "users",
    metadata,
    Column("id", BigInteger, Identity(always=True), nullable=False),
    Column("name", Text, nullable=False),
    Column("idempotency_key", Text),  # with the API key that it belongs to: see shared.registering
    Column("created_at", INSTANT, nullable=False, server_default=text("clock_timestamp()")),
    Column("balance", BigInteger, nullable=False, server_default=text("0")),
    Column("last_seq", BigInteger, nullable=False, server_default=text("0")),
    Column("last_history_at", INSTANT),
    Column("last_event_seq", BigInteger, nullable=False, server_default=text("0")),
    PrimaryKeyConstraint("id", name="users_pkey"),
    UniqueConstraint("idempotency_key", name="users_idempotency_key_key"),
    CheckConstraint("char_length(name) BETWEEN 1 AND 200", name="users_name_check"),
    CheckConstraint("balance >= 0", name="users_balance_not_negative"),
    CheckConstraint("balance <= 9000000000000000000", name="users_balance_limit"),
    # the balance changes in place: room on the page keeps those updates off the indexes (HOT)
    postgresql_with={"fillfactor": "60"},
)

transactions = Table(
    "transactions",
    metadata,
    Column("uid", Uuid, nullable=False),
    Column("user_id", BigInteger, nullable=False),
    Column("type", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("requested_at", INSTANT),
    Column("lane", SmallInteger, Computed("((user_id % (16)::bigint))::smallint", persisted=True), nullable=False),
    Column("accept_order", BigInteger, nullable=False),
    Column("status", Text, nullable=False, server_default=text("'PENDING'")),
    Column("reason", Text),
    Column("accepted_at", INSTANT, nullable=False),
    Column("settled_at", INSTANT),
    Column("request_id", Text),
    Column("parked_at", INSTANT),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("last_error", Text),
    Column("bulk", Boolean, nullable=False, server_default=text("false")),
    Column("lowest_balance", BigInteger),
    PrimaryKeyConstraint("uid", name="transactions_pkey"),
    CheckConstraint("user_id > 0", name="transactions_user_id_check"),
    CheckConstraint("type IN ('DEPOSIT', 'WITHDRAW')", name="transactions_type_check"),
    CheckConstraint("amount > 0", name="transactions_amount_check"),
    CheckConstraint("status IN ('PENDING', 'COMPLETED', 'REJECTED')", name="transactions_status_check"),
    CheckConstraint("(status = 'REJECTED') = (reason IS NOT NULL)", name="transactions_reason_check"),
    CheckConstraint("(status = 'PENDING') = (settled_at IS NULL)", name="transactions_settled_check"),
    CheckConstraint("parked_at IS NULL OR status = 'PENDING'", name="transactions_parked_check"),
)
Index(
    "transactions_pending_lane",
    transactions.c.lane,
    transactions.c.bulk,
    transactions.c.accept_order,
    postgresql_where=text(f"{_pending} AND parked_at IS NULL"),
)
Index(
    "transactions_pending_user",
    transactions.c.lane,
    transactions.c.user_id,
    transactions.c.bulk,
    transactions.c.accept_order,
    postgresql_where=text(f"{_pending} AND parked_at IS NULL"),
)
Index(
    "transactions_parked",
    transactions.c.user_id,
    transactions.c.accept_order,
    postgresql_where=text(f"{_pending} AND parked_at IS NOT NULL"),
)
Index("transactions_statement", transactions.c.user_id, transactions.c.accepted_at, transactions.c.accept_order)

ledger = Table(
    "ledger",
    metadata,
    Column("user_id", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("uid", Uuid, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("balance_after", BigInteger, nullable=False),
    Column("effective_at", INSTANT, nullable=False),
    Column("history_at", INSTANT, nullable=False),
    Column("late", Boolean, Computed("(effective_at < history_at)", persisted=True), nullable=False),
    Column("recorded_at", INSTANT, nullable=False),
    PrimaryKeyConstraint("user_id", "seq", name="ledger_pkey"),
    UniqueConstraint("uid", name="ledger_uid_key"),
    CheckConstraint("seq > 0", name="ledger_seq_check"),
    CheckConstraint("amount <> 0", name="ledger_amount_check"),
    CheckConstraint("balance_after >= 0", name="ledger_balance_after_not_negative"),
    CheckConstraint("history_at >= effective_at", name="ledger_history_check"),
)
Index("ledger_history", ledger.c.user_id, ledger.c.history_at, ledger.c.seq)
Index(
    "ledger_late",
    ledger.c.user_id,
    text("tstzrange(effective_at, history_at)"),
    postgresql_using="gist",
    postgresql_where=text("late"),
)

events = Table(
    "events",
    metadata,
    Column("id", BigInteger, Identity(always=True), nullable=False),
    Column("lane", SmallInteger, nullable=False),
    Column("user_id", BigInteger, nullable=False),
    Column("user_seq", BigInteger, nullable=False),
    Column("type", Text, nullable=False),
    Column("uid", Uuid, nullable=False),
    Column("balance_before", BigInteger, nullable=False),
    Column("balance_after", BigInteger, nullable=False),
    Column("occurred_at", INSTANT, nullable=False),
    PrimaryKeyConstraint("id", name="events_pkey"),
    UniqueConstraint("user_id", "user_seq", name="events_user_id_user_seq_key"),
    CheckConstraint("type IN ('transaction.completed', 'transaction.rejected')", name="events_type_check"),
)
Index("events_lane", events.c.lane, events.c.id)

Table(
    "api_keys",
    metadata,
    Column("id", BigInteger, Identity(always=True), nullable=False),
    Column("name", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("secret_hash", LargeBinary, nullable=False),
    Column("created_at", INSTANT, nullable=False, server_default=text("clock_timestamp()")),
    Column("revoked_at", INSTANT),
    PrimaryKeyConstraint("id", name="api_keys_pkey"),
    CheckConstraint("char_length(name) BETWEEN 1 AND 64", name="api_keys_name_check"),
    CheckConstraint("scope IN ('read', 'write', 'admin')", name="api_keys_scope_check"),
    CheckConstraint("length(secret_hash) = 32", name="api_keys_secret_hash_check"),
)

Table(
    "verifications",
    metadata,
    Column("id", BigInteger, Identity(always=True), nullable=False),
    Column("finished_at", INSTANT, nullable=False, server_default=text("clock_timestamp()")),
    Column("users", BigInteger, nullable=False),
    Column("entries", BigInteger, nullable=False),
    Column("differences", BigInteger, nullable=False),
    # false: `verify --since`, of what was new since the last proof
    Column("whole", Boolean, nullable=False, server_default=text("true")),
    PrimaryKeyConstraint("id", name="verifications_pkey"),
)

# A user's row of `users` as it was when `verify` last proved that user's books.
Table(
    "verification_marks",
    metadata,
    Column("user_id", BigInteger, nullable=False, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
    Column("balance", BigInteger, nullable=False),
    Column("history_at", INSTANT),
    Column("event_seq", BigInteger, nullable=False),
    PrimaryKeyConstraint("user_id", name="verification_marks_pkey"),
)

Table(
    "operator_actions",
    metadata,
    Column("id", BigInteger, Identity(always=True), nullable=False),
    Column("at", INSTANT, nullable=False, server_default=text("clock_timestamp()")),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("details", JSONB, nullable=False, server_default=text("'{}'")),
    PrimaryKeyConstraint("id", name="operator_actions_pkey"),
)
