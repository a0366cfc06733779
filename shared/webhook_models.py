"""The tables of webhooks: who is told, how far events have become deliveries, and the deliveries."""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Column,
    Identity,
    Index,
    Integer,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)

from shared.models import INSTANT, metadata

__all__ = ["metadata"]  # with these tables in it

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", BigInteger, Identity(always=True), nullable=False),
    Column("url", Text, nullable=False),
    Column("events", ARRAY(Text), nullable=False),
    Column("threshold", BigInteger, nullable=False, server_default=text("0")),
    # plain: signing needs it as it is
    Column("secret", Text, nullable=False),
    Column("previous_secret", Text),
    Column("previous_secret_until", INSTANT),
    Column("created_at", INSTANT, nullable=False, server_default=text("clock_timestamp()")),
    Column("disabled_at", INSTANT),
    Column("disabled_reason", Text),
    Column("failing_since", INSTANT),
    Column("rests_until", INSTANT),
    Column("deleted_at", INSTANT),
    Column("idempotency_key", Text),  # with the API key that it belongs to: see shared.registering
    PrimaryKeyConstraint("id", name="webhooks_pkey"),
    CheckConstraint("char_length(url) BETWEEN 1 AND 2000", name="webhooks_url_check"),
    CheckConstraint("cardinality(events) > 0", name="webhooks_events_check"),
    CheckConstraint("threshold >= 0", name="webhooks_threshold_check"),
)
Index(
    "webhooks_idempotency_key",
    webhooks.c.idempotency_key,
    unique=True,
    postgresql_where=text("idempotency_key IS NOT NULL AND deleted_at IS NULL"),
)

# Secrets that were rotated out, while they are valid. `webhooks.previous_secret` holds the last of them once more.
webhook_secrets = Table(
    "webhook_secrets",
    metadata,
    Column("webhook_id", BigInteger, nullable=False),
    Column("secret", Text, nullable=False),
    Column("valid_until", INSTANT, nullable=False),
    PrimaryKeyConstraint("webhook_id", "secret", name="webhook_secrets_pkey"),
)
Index("webhook_secrets_valid_until", webhook_secrets.c.valid_until)

Table(
    "webhook_cursors",
    metadata,
    Column("webhook_id", BigInteger, nullable=False),
    Column("lane", SmallInteger, nullable=False),
    Column("through", BigInteger, nullable=False),
    PrimaryKeyConstraint("webhook_id", "lane", name="webhook_cursors_pkey"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("webhook_id", BigInteger, nullable=False),
    Column("event_id", BigInteger, nullable=False),
    Column("position", SmallInteger, nullable=False),
    Column("type", Text, nullable=False),
    Column("user_id", BigInteger, nullable=False),
    Column("user_seq", BigInteger, nullable=False),
    Column("uid", Uuid, nullable=False),
    Column("balance", BigInteger, nullable=False),
    Column("occurred_at", INSTANT, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("next_attempt_at", INSTANT),
    Column("claimed_until", INSTANT),
    Column("delivered_at", INSTANT),
    Column("dead_at", INSTANT),
    Column("last_error", Text),
    # set once a receiver's Retry-After has made it wait for longer than the schedule does
    Column("schedule_ends_at", INSTANT),
    PrimaryKeyConstraint("webhook_id", "event_id", "position", name="deliveries_pkey"),
    CheckConstraint("delivered_at IS NULL OR dead_at IS NULL", name="deliveries_over_check"),
    CheckConstraint(
        "next_attempt_at IS NULL OR (delivered_at IS NULL AND dead_at IS NULL)", name="deliveries_next_check"
    ),
    CheckConstraint("claimed_until IS NULL OR next_attempt_at IS NOT NULL", name="deliveries_claimed_check"),
)
_of_webhook = deliveries.c.webhook_id
_has_turn = text("next_attempt_at IS NOT NULL")
Index("deliveries_head", _of_webhook, deliveries.c.user_id, unique=True, postgresql_where=_has_turn)
Index("deliveries_due", _of_webhook, deliveries.c.next_attempt_at, postgresql_where=_has_turn)
Index(
    "deliveries_claimed",
    _of_webhook,
    deliveries.c.claimed_until,
    postgresql_where=text("claimed_until IS NOT NULL"),
)
Index(
    "deliveries_line",
    *(_of_webhook, deliveries.c.user_id, deliveries.c.event_id, deliveries.c.position),
    postgresql_where=text("delivered_at IS NULL AND dead_at IS NULL"),
)
Index(
    "deliveries_dead",
    *(_of_webhook, deliveries.c.event_id, deliveries.c.position),
    postgresql_where=text("dead_at IS NOT NULL"),
)
Index(
    "deliveries_delivered",
    deliveries.c.delivered_at,
    postgresql_where=text("delivered_at IS NOT NULL"),
)
Index("deliveries_lane", text("(user_id % 16)"), deliveries.c.event_id, postgresql_where=_has_turn)
