"""Webhooks: who is told, how far events have been turned into deliveries, and the deliveries.

Per webhook and user one delivery at most has a `next_attempt_at`: the head of that user's line, which alone may be
attempted. A unique index holds it, so no mistake of the code can send a user's events in parallel.
"""

from alembic import op

revision = "0002"
down_revision = "0001"

TABLES = """
CREATE TABLE webhooks (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT webhooks_pkey PRIMARY KEY,
    url text NOT NULL CONSTRAINT webhooks_url_check CHECK (char_length(url) BETWEEN 1 AND 2000),
    events text[] NOT NULL CONSTRAINT webhooks_events_check CHECK (cardinality(events) > 0),
    threshold bigint NOT NULL DEFAULT 0 CONSTRAINT webhooks_threshold_check CHECK (threshold >= 0),
    secret text NOT NULL,
    previous_secret text,
    previous_secret_until timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    disabled_at timestamptz,
    disabled_reason text,
    failing_since timestamptz,
    rests_until timestamptz,
    deleted_at timestamptz
);

CREATE TABLE webhook_cursors (
    webhook_id bigint NOT NULL,
    lane smallint NOT NULL,
    through bigint NOT NULL,
    CONSTRAINT webhook_cursors_pkey PRIMARY KEY (webhook_id, lane)
);

CREATE TABLE deliveries (
    webhook_id bigint NOT NULL,
    event_id bigint NOT NULL,
    position smallint NOT NULL,
    type text NOT NULL,
    user_id bigint NOT NULL,
    user_seq bigint NOT NULL,
    uid uuid NOT NULL,
    balance bigint NOT NULL,
    occurred_at timestamptz NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz,
    claimed_until timestamptz,
    delivered_at timestamptz,
    dead_at timestamptz,
    last_error text,
    CONSTRAINT deliveries_pkey PRIMARY KEY (webhook_id, event_id, position),
    CONSTRAINT deliveries_over_check CHECK (delivered_at IS NULL OR dead_at IS NULL),
    CONSTRAINT deliveries_next_check
        CHECK (next_attempt_at IS NULL OR (delivered_at IS NULL AND dead_at IS NULL)),
    CONSTRAINT deliveries_claimed_check CHECK (claimed_until IS NULL OR next_attempt_at IS NOT NULL)
);
CREATE UNIQUE INDEX deliveries_head ON deliveries (webhook_id, user_id) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX deliveries_due ON deliveries (webhook_id, next_attempt_at) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX deliveries_claimed ON deliveries (webhook_id, claimed_until) WHERE claimed_until IS NOT NULL;
CREATE INDEX deliveries_line ON deliveries (webhook_id, user_id, event_id, position)
    WHERE delivered_at IS NULL AND dead_at IS NULL;
CREATE INDEX deliveries_dead ON deliveries (webhook_id, event_id, position) WHERE dead_at IS NOT NULL;
CREATE INDEX deliveries_delivered ON deliveries (delivered_at) WHERE delivered_at IS NOT NULL;
"""


def upgrade() -> None:
    op.execute(TABLES)
